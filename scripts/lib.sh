# shellcheck shell=bash
# Helpers of the scripts beside it: steps and checks that read well on a terminal and in a log, and a lab of real
# parts (registry, config repo, agent) in one temporary directory. Sourced by bash scripts that run as root.

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

# ---- what people see --------------------------------------------------------------------------------------

if [ -t 1 ] && [ -z "${NO_COLOR:-}" ] && [ "${TERM:-dumb}" != dumb ]; then
  bold=$'\e[1m' dim=$'\e[2m' green=$'\e[32m' red=$'\e[31m' plain=$'\e[0m'
else
  bold='' dim='' green='' red='' plain=''
fi

passed=0
begun=$SECONDS

# A headed step of the story.
step() { printf '\n%s== %s%s  %s(%d s)%s\n' "$bold" "$*" "$plain" "$dim" $((SECONDS - begun)) "$plain"; }

# A sentence of it.
say() { printf '%s\n' "$*"; }

# Shows a command as one would type it, runs it, and indents what it says. Its exit code is the command's.
show() {
  printf '%s$ %s%s\n' "$bold" "$*" "$plain"
  "$@" 2>&1 | sed 's/^/    /'
  return "${PIPESTATUS[0]}"
}

# check WHAT COMMAND…: the claim holds, or the script ends here.
check() {
  local what=$1
  shift
  if "$@"; then
    passed=$((passed + 1))
    printf '  %sok%s  %s\n' "$green" "$plain" "$what"
  else
    fail "$what"
  fi
}

# A command that failed outside of a check ends the script, too: say which one (set -E lets functions inherit it).
set -E
trap 'printf "  %sFAILED%s  %s:%s: %s\n" "$red" "$plain" "${BASH_SOURCE[0]##*/}" "$LINENO" "$BASH_COMMAND"' ERR

# Ends the script: the claim did not hold. A word of evidence follows from the exit trap.
fail() {
  printf '  %sFAILED%s  %s\n' "$red" "$plain" "$*"
  exit 1
}

# wait_for SECONDS WHAT COMMAND…: until the command succeeds; a failed claim when it does not in time. A machine that is so many
# times slower than others says so in GITOPSD_TEST_SLOW.
wait_for() {
  local limit=$(($1 * ${GITOPSD_TEST_SLOW:-1})) what=$2 until
  shift 2
  until=$((SECONDS + limit))
  until "$@" >/dev/null 2>&1; do
    [ $SECONDS -lt $until ] || fail "$what (waited $limit s)"
    sleep "${GITOPSD_TEST_SLOW:-1}e-1"
  done
  passed=$((passed + 1))
  printf '  %sok%s  %s\n' "$green" "$plain" "$what"
}

# The plain closing line.
finish() {
  printf "\n%s%s: %d passed, 0 failed%s\n" "$bold" "${0##*/}" "$passed" "$plain"
}

# ---- the machine ------------------------------------------------------------------------------------------

# A TCP port of 127.0.0.1 that nobody listens on, below the range of outgoing connections.
free_port() {
  local port
  while :; do
    port=$((20000 + RANDOM % 12000))
    [ -n "$(ss -Hltn "sport = :$port")" ] || break
  done
  printf '%s\n' "$port"
}

# end_process PID SECONDS: SIGTERM, then SIGKILL; only ever a child of this script.
end_process() {
  local pid=$1 until=$((SECONDS + $2))
  kill -TERM "$pid" 2>/dev/null || return 0
  while kill -0 "$pid" 2>/dev/null && [ $SECONDS -lt $until ]; do sleep 0.05; done
  kill -KILL "$pid" 2>/dev/null || true
  wait "$pid" 2>/dev/null || true
}

# build_tool NAME: compiles tests/support/NAME.rs, unless that has been done since anything there was changed; prints the program.
build_tool() {
  local program=${CARGO_TARGET_DIR:-$root/target}/tools/$1
  if [ ! -x "$program" ] || [ -n "$(find "$root/tests/support" -name '*.rs' -newer "$program")" ]; then
    mkdir -p "${program%/*}"
    (cd "$root" && rustc --edition 2024 -O -A dead_code -C target-feature=+crt-static -C strip=symbols -o "$program" "tests/support/$1.rs" >&2)
  fi
  printf '%s\n' "$program"
}

# Builds what the scripts run, unless GITOPSD_BIN and LOAD_BIN name it. The load generator needs only the standard library, and is
# static, so that a container needs nothing else.
build_programs() {
  if [ -z "${GITOPSD_BIN:-}" ]; then
    (cd "$root" && cargo build --release --locked)
    GITOPSD_BIN=${CARGO_TARGET_DIR:-$root/target}/release/gitopsd
  fi
  LOAD_BIN=${LOAD_BIN:-$(build_tool load)}
  [ -x "$GITOPSD_BIN" ] || { echo "$GITOPSD_BIN: no such program" >&2; exit 1; }
  GITOPSD_BIN=$(realpath "$GITOPSD_BIN")
  LOAD_BIN=$(realpath "$LOAD_BIN")
  export GITOPSD_BIN LOAD_BIN
}

# ---- the lab ----------------------------------------------------------------------------------------------

lab='' agent_pid='' registry_pid='' instance='' load_pids=()

# Makes the directory and names of this run.
lab_open() {
  instance=$1$((RANDOM % 10000))
  lab=$(mktemp -d "${TMPDIR:-/tmp}/$instance.XXXXXX")
  registry_port=$(free_port)
  registry=127.0.0.1:$registry_port
  host='web-1'
  # No configuration of whoever runs this has a say.
  export HOME=$lab GIT_CONFIG_NOSYSTEM=1 GIT_TERMINAL_PROMPT=0
  git config --file "$lab/.gitconfig" user.name 'Ada Example'
  git config --file "$lab/.gitconfig" user.email ada@example.org
  git config --file "$lab/.gitconfig" init.defaultBranch main
  git config --file "$lab/.gitconfig" advice.detachedHead false
}

# Takes everything away again, whatever had been there. Called once, from the exit trap.
lab_close() {
  local pid ok=0
  [ -n "$lab" ] || return 0
  for pid in "${load_pids[@]}"; do end_process "$pid" 1; done
  [ -z "$agent_pid" ] || end_process "$agent_pid" 20
  if [ -f "$lab/gitopsd.toml" ] && [ -x "${GITOPSD_BIN:-}" ]; then
    "$GITOPSD_BIN" --config "$lab/gitopsd.toml" teardown --purge --yes >"$lab/teardown.log" 2>&1 || {
      ok=1
      printf 'teardown failed:\n' >&2
      tail -n 20 "$lab/teardown.log" >&2
    }
  fi
  [ -z "$registry_pid" ] || end_process "$registry_pid" 5
  rm -rf --one-file-system "$lab" || ok=1
  lab=''
  return $ok
}

registry_start() {
  cat >"$lab/registry.yml" <<YML
version: 0.1
log: {level: error}
storage: {filesystem: {rootdirectory: $lab/registry}}
http: {addr: '$registry'}
YML
  docker-registry serve "$lab/registry.yml" >"$lab/registry.log" 2>&1 &
  registry_pid=$!
  wait_for 20 "a container registry serves on $registry" curl -fsS "http://$registry/v2/"
}

# A bare config repo with a clone to commit from, made of examples/config-repo: the registry's address and the
# host's port are this run's own, and the first version is 1.0.0.
repo_create() {
  git init --quiet --bare "$lab/config.git"
  git clone --quiet "$lab/config.git" "$lab/work" 2>/dev/null
  cp -R "$root/examples/config-repo/." "$lab/work/"
  web=$lab/work/services/web.toml
  web_port=$(free_port)
  sed -i -E "s#^image *= *\"[^\"]*\"#image = \"$registry/web:1.0.0\"#; s#^ports *= *\\[.*\\]#ports = [\"$web_port:8080\"]#" "$web"
}

# Commits everything in the clone and pushes it.
commit() {
  git -C "$lab/work" add --all
  git -C "$lab/work" commit --quiet --message "$1"
  git -C "$lab/work" push --quiet origin HEAD:main
}

# Bumps the image's tag: the one line that people change.
bump() {
  sed -i -E "s#^(image *= *\"[^\"]*:)[^\":]*\"#\\1$1\"#" "$web"
  printf '%s$ edit services/web.toml; git commit -am "web %s"; git push%s\n' "$bold" "$1" "$plain"
  git -C "$lab/work" --no-pager diff --no-color --unified=0 | sed -n '/^[-+][^-+]/s/^/    /p'
  commit "web $1"
}

# The second number of a 10.x.0.0/16 that no interface or route of this machine is in.
free_subnet() {
  local number
  while :; do
    number=$((120 + RANDOM % 130))
    [ -n "$(ip -4 -o addr show | grep -F " 10.$number.")$(ip -4 route show | grep "^10\.$number\.")" ] || break
  done
  printf '%s\n' "$number"
}

agent_configure() {
  cat >"$lab/gitopsd.toml" <<TOML
state_dir = "$lab/state"
run_dir = "$lab/run"
instance = "$instance"

[repo]
url = "$lab/config.git"
branch = "main"
poll = "5s"

[host]
name = "$host"
labels = ["role=web"]

[engine]
subnet = "10.$(free_subnet).0.0/16"

[registry."$registry"]
plain_http = true

[policy]
registries = ["$registry/*"]

[report]
push = true
TOML
}

agent_start() {
  "$GITOPSD_BIN" run --config "$lab/gitopsd.toml" </dev/null >>"$lab/agent.log" 2>&1 &
  agent_pid=$!
}

# The agent's commands, with this run's configuration.
gitopsd() { "$GITOPSD_BIN" --config "$lab/gitopsd.toml" "$@"; }

# status_is FILTER: a jq filter over the one service called web holds.
status_is() { gitopsd status --json | jq -e ".services[] | select(.name == \"web\") | $1" >/dev/null; }

# status_value FILTER: prints what it gives.
status_value() { gitopsd status --json | jq -r ".services[] | select(.name == \"web\") | $1"; }

# receipt_is FILTER: one of the receipts is like that.
receipt_is() { gitopsd history --json | jq -e "any(.[]; .service == \"web\" and ($1))" >/dev/null; }

# ---- load -------------------------------------------------------------------------------------------------

# load_start NAME MODE RATE: requests until load_stop.
load_start() {
  rm -f "$lab/load.stop"
  "$LOAD_BIN" --url "http://127.0.0.1:$web_port/" --mode "$2" --rate "$3" --connections 8 --seconds 600 \
    --until-file "$lab/load.stop" --json >"$lab/load.$1.json" 2>"$lab/load.$1.err" &
  load_pids+=($!)
}

# Stops all of it; the reports are in $lab/load.NAME.json.
load_stop() {
  local pid
  touch "$lab/load.stop"
  for pid in "${load_pids[@]}"; do wait "$pid" || true; done
  load_pids=()
}

# load_is NAME FILTER: a jq filter over a report holds.
load_is() { jq -e "$2" "$lab/load.$1.json" >/dev/null; }

load_show() {
  jq -r --arg name "$2" '"    \($name): \(.requests) requests, \(.failed) failed\(if .failed > 0 then " \(.failures)" else "" end); " +
    ([.versions | to_entries[] | "\(.value) from \(.key)"] | join(", ")) +
    "; p50 \(.p50_ms * 100 | round / 100) ms, p99 \(.p99_ms * 100 | round / 100) ms, longest gap \(.longest_gap_ms | round) ms"' "$lab/load.$1.json"
}
