#!/bin/sh
# How many worker processes, from the environment.
printf 'worker_processes %s;\n' "${NGINX_WORKERS:-1}" >/etc/nginx/workers.conf
