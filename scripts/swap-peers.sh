# shellcheck shell=bash
# shellcheck disable=SC2154
# How others swap a container behind a port of the host, for scripts/bench-swap, which sources this: Docker and Podman by stop
# and run, Compose by `up`, HAProxy and nginx as a proxy with a reload between two containers.

dockerd_pid='' proxy_pid=''

podman() {
  command podman --root "$lab/podman" --runroot "$lab/podman.run" --tmpdir "$lab/podman.tmp" --storage-driver overlay \
    --cgroup-manager cgroupfs --events-backend file --runtime "$(command -v crun || command -v runc)" "$@"
}
# A machine may forbid to raise them, which Podman would do.
podman_limits=(--ulimit "nofile=$(ulimit -Hn):$(ulimit -Hn)" --ulimit nproc=30000:30000)

peers_open() {
  local i
  [ -n "$peers" ] || return 0
  step "Prepare: Docker, Podman, the same images in both"
  export DOCKER_HOST=unix://$lab/docker.sock
  mkdir -p "$lab/docker" "$lab/docker.run" "$lab/podman"
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
  clients_begin "$app"
  client 'a new connection each' outside "http://$host4/"
  client 'kept, retries' outside "http://$host4/" --mode keepalive --retry-stale
  client 'kept, does not retry' outside "http://$host4/" --mode keepalive
  client 'kept for 1 s at most' outside "http://$host4/" --mode keepalive --max-age 1
  # A port without TLS is for one version of HTTP there.
  [ "$peer" = nginx ] || client 'HTTP/2' outside "http://$host4/" --mode http2
  client '127.0.0.1, new' host http://127.0.0.1/
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
answers_now() { [ "$(outside curl -s --max-time 2 "http://$host4/")" = "version $1" ]; }

# ---- docker stop && docker run ----------------------------------------------------------------------------

# shellcheck disable=SC2046
docker_run() { docker run --detach --name "$1" "${@:4}" "$registry/app:$3" $(app_command "$2"); }
docker_begin() { docker_run web "$1" 0 --publish 80:8080; }
docker_swap() {
  docker stop --time 5 web && docker rm web && docker_run web "$1" "$2" --publish 80:8080
}
docker_end() { docker rm --force web; }

# ---- docker-compose up ------------------------------------------------------------------------------------

compose_up() {
  mkdir -p "$lab/compose"
  cat >"$lab/compose/docker-compose.yml" <<YML
version: "3"
services:
  web:
    image: $registry/app:$2
    command: $(app_command "$1")
    ports: ["80:8080"]
    stop_grace_period: 5s
YML
  (cd "$lab/compose" && docker-compose up --detach)
}
compose_begin() { compose_up "$1" 0; }
compose_swap() { compose_up "$1" "$2"; }
compose_end() { (cd "$lab/compose" && docker-compose down --timeout 1); }

# ---- podman -----------------------------------------------------------------------------------------------

# shellcheck disable=SC2046
podman_run() { podman run --detach "${podman_limits[@]}" --name web --publish 80:8080 "$registry/app:$2" $(app_command "$1"); }
podman_begin() { podman_run "$1" 0; }
podman_swap() { podman stop --time 5 web && podman rm web && podman_run "$1" "$2"; }
podman_end() { podman rm --force --time 0 web; }

# ---- a proxy in front -------------------------------------------------------------------------------------

# Starts version $2 beside the other one; sets backend once it answers.
beside() {
  docker_run "web$2" "$1" "$2"
  backend=$(docker inspect --format '{{.NetworkSettings.IPAddress}}' "web$2"):8080
  until [ "$(curl -s --max-time 1 "http://$backend/")" = "version $2" ]; do sleep 0.05; done
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
  retries 3
frontend web
  bind :80
  default_backend web
backend web
  server web $backend
CFG
}
haproxy_begin() {
  beside "$1" 0
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
  docker rm --force "web$swaps"
}

nginx_file() {
  mkdir -p "$lab/nginx"
  cat >"$lab/nginx/nginx.conf" <<CONF
daemon off;
pid $lab/nginx/pid;
error_log stderr error;
events {}
http {
  access_log off;
  client_body_temp_path $lab/nginx/body;
  proxy_temp_path $lab/nginx/proxy;
  fastcgi_temp_path $lab/nginx/fastcgi;
  uwsgi_temp_path $lab/nginx/uwsgi;
  scgi_temp_path $lab/nginx/scgi;
  upstream web { server $backend; keepalive 16; }
  server {
    listen 80;
    location / { proxy_pass http://web; proxy_http_version 1.1; proxy_set_header Connection ""; }
  }
}
CONF
}
nginx_begin() {
  beside "$1" 0
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

# What could not be measured, and why.
peers_notes() {
  printf '\nWhat the table does not have of peers was not measured. Never compared: UDP, IPv6 and requests by name from a container, which each\n'
  printf 'of them does in a way of its own; WebSocket, as the program leaves out of its handshake what HAProxy asks for; and HTTP/2 of nginx, whose ports\n'
  printf 'without TLS are for one version of HTTP.\n'
  [ -e /proc/net/ip_vs ] || printf '\nSwarm is missing: its routing needs IPVS, which this kernel does not have.\n'
}
