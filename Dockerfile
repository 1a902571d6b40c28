# syntax=docker/dockerfile:1

FROM rust:1.95-bookworm AS build
WORKDIR /src
COPY . .
# The commit that `hotshelf --version` prints; .git is not in the build context.
ARG HOTSHELF_COMMIT=
# The cache mounts are not part of the layer, so the same step copies the results to /out.
RUN --mount=type=cache,target=/usr/local/cargo/registry,sharing=locked \
    --mount=type=cache,target=/src/target,sharing=locked \
    cargo build --locked --release -p hotshelf -p devstack \
    && install -D -t /out target/release/hotshelf \
    && target/release/devstack sample-products --count 10000 > /out/products.csv \
    && scripts/third-party-notices.sh > /out/THIRD-PARTY-NOTICES.txt

# The binary contains the migrations and needs no other file. The image has no shell and no package manager; the user is 65532.
FROM gcr.io/distroless/cc-debian12:nonroot AS runtime
COPY --from=build /out/hotshelf /usr/local/bin/hotshelf
COPY --from=build /out/THIRD-PARTY-NOTICES.txt /src/LICENSE /usr/share/doc/hotshelf/
# The default, the loopback, would be reachable from inside the container only.
ENV ADMIN_ADDR=0.0.0.0:9464
# gRPC, and the admin port: /metrics, /livez, /readyz.
EXPOSE 50051 9464
ENTRYPOINT ["/usr/local/bin/hotshelf"]

# `hotshelf import` with sample products, for docker-compose.yml.
FROM runtime AS sample
COPY --from=build /out/products.csv /usr/share/hotshelf/products.csv
CMD ["import", "--if-empty", "/usr/share/hotshelf/products.csv"]

# The default target of `docker build .`.
FROM runtime
