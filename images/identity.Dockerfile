# The embedded identity/keys service: unprivileged, no shell.
# The same image is made without a container daemon by `cargo xtask images`, which reads this file and leaves the build
# context in target/images/context:  docker build -f images/identity.Dockerfile -t cryptvol.dev/identity:TAG target/images/context
FROM scratch
ADD base.tar /
COPY cryptvol-identity /usr/bin/cryptvol-identity
LABEL org.opencontainers.image.title="cryptvol-identity"
LABEL org.opencontainers.image.source="https://github.com/cryptvol/cryptvol"
LABEL org.opencontainers.image.licenses="Apache-2.0"
USER 65532:65532
ENTRYPOINT ["/usr/bin/cryptvol-identity"]
