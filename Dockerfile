# syntax=docker/dockerfile:1

# Base images are named by exact version. A digest is stricter still: pin it where you build (`docker buildx imagetools inspect rust:1.95.0-bookworm`).
FROM rust:1.95.0-bookworm AS build
WORKDIR /src
COPY . .
RUN --mount=type=cache,target=/usr/local/cargo/registry \
    --mount=type=cache,target=/src/target \
    cargo build --locked --release --bin unstale \
    && install -D target/release/unstale /out/unstale

FROM debian:12.11-slim
RUN apt-get update \
    && apt-get install -y --no-install-recommends ca-certificates tzdata \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --system --no-create-home --uid 10001 --user-group --shell /usr/sbin/nologin unstale
COPY --from=build /out/unstale /usr/local/bin/unstale
# A number, so that Kubernetes' runAsNonRoot can tell.
USER 10001:10001
# Mount your registry here. The worker writes nothing to the file system: run it read-only, with a tmpfs at /tmp for `unstale dlq show` and
# `dlq list --json` in it.
WORKDIR /etc/unstale
ENV UNSTALE_HTTP_ADDR=0.0.0.0:9477 \
    UNSTALE_SCHEMAS=/etc/unstale/schemas
EXPOSE 9477
STOPSIGNAL SIGTERM
# Live, not ready: a restart does not bring back a Redis that is away. The slim image has neither curl nor wget; bash speaks enough HTTP.
# With UNSTALE_HTTP_ADDR=off nothing answers: run with --no-healthcheck then.
HEALTHCHECK --interval=10s --timeout=3s --start-period=10s --retries=3 \
    CMD ["bash", "-c", "exec 3<>/dev/tcp/127.0.0.1/${UNSTALE_HTTP_ADDR##*:} && printf 'GET /livez HTTP/1.0\\r\\n\\r\\n' >&3 && read -r -t 2 status <&3 && [[ $status == *' 200 '* ]]"]
ENTRYPOINT ["unstale"]
CMD ["run"]
