# syntax=docker/dockerfile:1

FROM rust:1.95-bookworm AS build
WORKDIR /src
COPY . .
# The caches outlive the layer; what is needed from them is copied out in the same step.
RUN --mount=type=cache,target=/usr/local/cargo/registry,sharing=locked \
    --mount=type=cache,target=/src/target,sharing=locked \
    cargo build --locked --release -p hotshelf -p devstack \
    && install -D -t /out target/release/hotshelf \
    && target/release/devstack sample-products --count 10000 > /out/products.csv \
    && scripts/third-party-notices.sh > /out/THIRD-PARTY-NOTICES.txt

# Migrations are inside the binary, so it is all that is needed. No shell, no package manager; the user is 65532.
FROM gcr.io/distroless/cc-debian12:nonroot AS runtime
COPY --from=build /out/hotshelf /usr/local/bin/hotshelf
COPY --from=build /out/THIRD-PARTY-NOTICES.txt /src/LICENSE /usr/share/doc/hotshelf/
# By default only the container itself could reach the admin port.
ENV ADMIN_ADDR=0.0.0.0:9464
# gRPC, and the admin port: /metrics, /livez, /readyz.
EXPOSE 50051 9464
ENTRYPOINT ["/usr/local/bin/hotshelf"]

# `hotshelf import` with something to import; docker-compose.yml runs it once.
FROM runtime AS sample
COPY --from=build /out/products.csv /usr/share/hotshelf/products.csv
CMD ["import", "--if-empty", "/usr/share/hotshelf/products.csv"]

# What `docker build .` makes.
FROM runtime
