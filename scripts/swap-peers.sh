# shellcheck shell=bash
# shellcheck disable=SC2034,SC2154
# How others swap a container behind a port of the host, for scripts/bench-swap, which sources this: Docker and Podman by stop
# and run, Compose by `up`, Swarm by an update that starts the new one first, HAProxy and nginx as a proxy with a reload between two
# containers.

dockerd_pid='' proxy_pid='' resolver_pid=''

podman() {
  command podman --root "$lab/podman" --runroot "$lab/podman.run" --tmpdir "$lab/podman.tmp" --storage-driver overlay \
    --network-config-dir "$lab/podman.networks" --cgroup-manager cgroupfs --events-backend file --runtime "$(command -v crun || command -v runc)" "$@"
}
# A machine may forbid to raise them, which Podman would do.
podman_limits=(--ulimit "nofile=$(ulimit -Hn):$(ulimit -Hn)" --ulimit nproc=30000:30000)

# How Docker and Podman show a container, and to whom they tell its name: those of a network that is not everybody's.
published=(--network web --publish 80:8080 --publish 80:8080/udp)

peers_open() {
  local i
  [ -n "$peers" ] || return 0
  step "Prepare: Docker, Podman, the same images in both"
  # Their DNS asks the machine's about names that it does not know, such as that of a container that is gone: one that knows none
  # answers at once.
  dnsmasq --keep-in-foreground --conf-file=/dev/null --pid-file= --user=root --no-resolv --no-hosts --bind-interfaces \
    --listen-address "$host4" --address=/#/ --log-facility "$lab/dnsmasq.log" &
  resolver_pid=$!
  printf 'nameserver %s\n' "$host4" >"$lab/resolv.conf"
  mount --bind "$lab/resolv.conf" /etc/resolv.conf
  export DOCKER_HOST=unix://$lab/docker.sock
  mkdir -p "$lab/docker" "$lab/docker.run" "$lab/podman" /run/containers
  # Where Podman keeps its networks' addresses and its DNS, whatever its other directories are.
  mount -t tmpfs tmpfs /run/containers
  # crun refuses a machine with both kinds of control groups.
  [ -e /sys/fs/cgroup/cgroup.controllers ] || umount /sys/fs/cgroup/unified 2>/dev/null || true
  dockerd --data-root "$lab/docker" --exec-root "$lab/docker.run" --pidfile "$lab/docker.pid" --host "$DOCKER_HOST" \
    --bip 10.222.3.1/24 --default-address-pool base=10.222.8.0/21,size=24 --insecure-registry "$registry" >"$lab/dockerd.log" 2>&1 &
  dockerd_pid=$!
  wait_for 60 'dockerd answers' docker version
  for i in $(seq 0 "$swaps"); do
    docker pull --quiet "$registry/app:$i" >/dev/null
    case " $peers " in *' podman '*) podman pull --quiet --tls-verify=false "$registry/app:$i" >/dev/null ;; esac
  done
}

peers_close() {
  [ -z "$proxy_pid" ] || end_process "$proxy_pid" 2
  if [ -n "$dockerd_pid" ]; then
    docker ps --all --quiet | xargs -r docker rm --force >/dev/null 2>&1 || true
    end_process "$dockerd_pid" 20
  fi
  if [ -n "$lab" ] && [ -d "$lab/podman" ]; then podman rm --all --force --time 0 >/dev/null 2>&1 || true; fi
  [ -z "$resolver_pid" ] || end_process "$resolver_pid" 2
  if [ -n "$lab" ]; then grep -o " $lab/[^ ]*" /proc/mounts | sort -r | xargs -r -n 1 umount -l 2>/dev/null || true; fi
}

# peer_swaps PEER APP
peer_swaps() {
  local peer=$1 app=$2 i started
  step "$peer: $swaps swaps of a program that is: $app"
  # What the one before had does not lead to where nobody is any more.
  conntrack -F >>"$lab/commands.log" 2>&1
  "${peer}_begin" "$app" >>"$lab/commands.log" 2>&1
  answers 0
  in_container=(docker exec client) http2_port='' name_port=:8080 without=''
  case $peer in
    podman) in_container=(podman exec client) ;;
    # https://github.com/moby/moby/issues/28492: it takes the connection, and nobody answers.
    swarm) without='|IPv6, new|' ;;
    haproxy) name_port='' without='|UDP, same port|' ;;
    nginx) name_port='' http2_port=:8081 ;;
  esac
  clients_begin "$app"
  sleep 1
  started=$SECONDS
  for i in $(seq 1 "$swaps"); do
    "${peer}_swap" "$app" "$i" >>"$lab/commands.log" 2>&1 || fail "$peer: swap $i"
    answers "$i"
    sleep 1
  done
  say "    $swaps swaps in $((SECONDS - started)) s"
  clients_end "$peer" "$app"
  "${peer}_end" >>"$lab/commands.log" 2>&1 || true
}

# answers VERSION: asked from outside until that one answers.
answers() { wait_for 30 "version $1 answers" answers_now "$1" >/dev/null; }
answers_now() { [ "$(outside curl -s --max-time $((5 * slow)) "http://$host4/")" = "version $1" ]; }

# ---- docker stop && docker run ----------------------------------------------------------------------------

# shellcheck disable=SC2046
docker_run() { docker run --detach --name "$1" "${@:4}" "$registry/app:$3" $(app_command "$2"); }
docker_client() { docker run --detach --name client --volume "$lab/shared:/lab" "$@" "$registry/app:0" /app --manner dies; }
docker_begin() {
  docker network create web
  docker_client --network web
  docker_run web "$1" 0 "${published[@]}"
}
docker_swap() {
  docker stop --time 5 web && docker rm web && docker_run web "$1" "$2" "${published[@]}"
}
docker_end() {
  docker rm --force web client
  docker network rm web
}

# ---- docker-compose up ------------------------------------------------------------------------------------

compose_up() {
  mkdir -p "$lab/compose"
  cat >"$lab/compose/docker-compose.yml" <<YML
version: "3"
services:
  web:
    image: $registry/app:$2
    command: $(app_command "$1")
    ports: ["80:8080", "80:8080/udp"]
    stop_grace_period: 5s
  client:
    image: $registry/app:0
    container_name: client
    command: /app --manner dies
    volumes: ["$lab/shared:/lab"]
YML
  (cd "$lab/compose" && docker-compose up --detach)
}
compose_begin() { compose_up "$1" 0; }
compose_swap() { compose_up "$1" "$2"; }
compose_end() { (cd "$lab/compose" && docker-compose down --timeout 1); }

# ---- docker swarm, start-first ----------------------------------------------------------------------------

# The kernel's balancer, which published ports and names of services go through.
has_ipvs() { [ -e /proc/net/ip_vs ] || { modprobe --quiet ip_vs 2>/dev/null && [ -e /proc/net/ip_vs ]; }; }

# A stack, as `service create` knows no health check but by a shell, which the image does not have. With the check Swarm sends
# nobody to a container before it answers, and takes the old one out of the mesh two seconds before it is told to end.
swarm_begin() {
  docker swarm init --advertise-addr "$host4" --dispatcher-heartbeat $((5 * slow))s
  docker network create --driver overlay --attachable web
  cat >"$lab/swarm.yml" <<YML
version: "3.8"
services:
  web:
    image: $registry/app:0
    command: $(app_command "$1")
    ports: ["80:8080", "80:8080/udp"]
    networks: [web]
    stop_grace_period: 5s
    healthcheck:
      test: ["CMD", "/load", "--url", "http://127.0.0.1:8080/", "--connections", "1", "--rate", "1", "--seconds", "0.5"]
      interval: $((1 * slow))s
      timeout: $((10 * slow))s
      retries: 3
      start_period: $((10 * slow))s
    deploy:
      replicas: 1
      update_config: {order: start-first, parallelism: 1, failure_action: rollback}
networks:
  web: {external: true}
YML
  docker stack deploy --compose-file "$lab/swarm.yml" swarm
  docker_client --network web
}
# It waits until the update is through, and Swarm has watched the new one for five seconds.
swarm_swap() { docker service update --quiet --image "$registry/app:$2" swarm_web; }
swarm_end() {
  docker stack rm swarm
  docker rm --force client
  docker swarm leave --force
  # It is not through with either when it says so.
  wait_for 60 'nothing of Swarm is left' swarm_gone
}
swarm_gone() { [ -z "$(docker ps --all --quiet)$(docker network ls --quiet --filter driver=overlay)" ]; }

# ---- podman -----------------------------------------------------------------------------------------------

# shellcheck disable=SC2046
podman_run() { podman run --detach "${podman_limits[@]}" --name web "${published[@]}" "$registry/app:$2" $(app_command "$1"); }
podman_begin() {
  podman network create --ipv6 --subnet 10.222.16.0/24 --subnet fd00:222:16::/64 web
  podman run --detach "${podman_limits[@]}" --name client --network web --volume "$lab/shared:/lab" "$registry/app:0" /app --manner dies
  podman_run "$1" 0
}
podman_swap() { podman stop --time 5 web && podman rm web && podman_run "$1" "$2"; }
podman_end() {
  podman rm --force --time 0 web client
  podman network rm web
}

# ---- a proxy in front -------------------------------------------------------------------------------------

# proxy_begin APP: the first version, and a container whose hosts file says that the name is the host, where the proxy is.
proxy_begin() {
  docker_client --add-host web:host-gateway
  beside "$1" 0
}

# Starts version $2 beside the other one; sets backend once it answers.
beside() {
  docker_run "web$2" "$1" "$2"
  backend=$(docker inspect --format '{{.NetworkSettings.IPAddress}}' "web$2"):8080
  until [ "$(curl -s --max-time 5 "http://$backend/")" = "version $2" ]; do sleep 0.05; done
}

# The former one has a second to finish what the proxy has sent it, as gitopsd's has its drain.
retire() { sleep 1; docker stop --time 5 "web$(($1 - 1))"; docker rm "web$(($1 - 1))"; }

haproxy_file() {
  cat >"$lab/haproxy.cfg" <<CFG
global
  stats socket $lab/haproxy.sock level admin expose-fd listeners
  maxconn 2000
defaults
  mode http
  timeout connect 2s
  timeout client 30s
  timeout server 30s
  timeout tunnel 1h
  retries 3
frontend web
  bind :80
  bind :::80 v6only
  default_backend web
backend web
  server web $backend
CFG
}
haproxy_begin() {
  proxy_begin "$1"
  haproxy_file
  haproxy -W -f "$lab/haproxy.cfg" &
  proxy_pid=$!
}
haproxy_swap() {
  beside "$1" "$2"
  haproxy_file
  kill -USR2 "$proxy_pid"
  answers "$2"
  retire "$2"
}
haproxy_end() {
  end_process "$proxy_pid" 2
  proxy_pid=''
  docker rm --force "web$swaps" client
}

nginx_file() {
  mkdir -p "$lab/nginx"
  cat >"$lab/nginx/nginx.conf" <<CONF
daemon off;
load_module modules/ngx_stream_module.so;
pid $lab/nginx/pid;
error_log stderr error;
events {}
stream {
  server { listen 80 udp; listen [::]:80 udp; proxy_pass $backend; }
}
http {
  access_log off;
  client_body_temp_path $lab/nginx/body;
  proxy_temp_path $lab/nginx/proxy;
  fastcgi_temp_path $lab/nginx/fastcgi;
  uwsgi_temp_path $lab/nginx/uwsgi;
  scgi_temp_path $lab/nginx/scgi;
  upstream web { server $backend; keepalive 16; }
  map \$http_upgrade \$connection_upgrade { default upgrade; "" ""; }
  server {
    listen 80;
    listen [::]:80;
    listen 8081 http2;
    location / {
      proxy_pass http://web;
      proxy_http_version 1.1;
      proxy_set_header Upgrade \$http_upgrade;
      proxy_set_header Connection \$connection_upgrade;
    }
  }
}
CONF
}
nginx_begin() {
  proxy_begin "$1"
  nginx_file
  nginx -c "$lab/nginx/nginx.conf" -e stderr &
  proxy_pid=$!
}
nginx_swap() {
  beside "$1" "$2"
  nginx_file
  nginx -c "$lab/nginx/nginx.conf" -e stderr -s reload
  answers "$2"
  retire "$2"
}
nginx_end() { haproxy_end; }

# What is done in another way than by gitopsd, and what could not be measured, and why.
peers_notes() {
  printf '\nA container that asks by name looks the name up for each connection: by the DNS of Docker, or of Podman (netavark, aardvark-dns), in a\n'
  printf 'network that it has in common with the program; HAProxy and nginx are on the host, whose address is in its hosts file. HTTP/2 of nginx\n'
  printf 'is at a port of its own, since its ports without TLS are for one version of HTTP. UDP of nginx is by its stream module; UDP of HAProxy\n'
  printf 'is missing, since it has none.\n'
  if has_ipvs; then
    printf '\nIPv6 of Swarm is missing, since its routing mesh has none.\n'
  else
    printf '\nSwarm is in [a table of its own](#swarm-in-a-virtual-machine): its routing mesh needs IPVS, which this kernel does not have.\n'
  fi
}
