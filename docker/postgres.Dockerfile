# PostgreSQL with Walhalla beside it, for archive_command and restore_command. From the top of the tree, after
# docker/Dockerfile has been built as `walhalla`:
#   docker build -f docker/postgres.Dockerfile -t walhalla-postgres .

ARG PG_MAJOR=17
ARG WALHALLA_IMAGE=walhalla

FROM ${WALHALLA_IMAGE} AS walhalla

FROM postgres:${PG_MAJOR}-bookworm
RUN apt-get update \
 && apt-get install -y --no-install-recommends ca-certificates \
 && rm -rf /var/lib/apt/lists/*
COPY --from=walhalla /usr/local/bin/walhalla /usr/local/bin/walhalla
# The store's directory and the settings' one; volumes mounted there take over their owner.
RUN install -d -o postgres -g postgres -m 0700 /srv/walhalla /srv/walhalla/store \
 && install -d /etc/walhalla
