# The operator: unprivileged, no shell.
# The same image is made without a container daemon by `cargo xtask images`, which reads this file and leaves the build
# context in target/images/context:  docker build -f images/operator.Dockerfile -t cryptvol.dev/operator:TAG target/images/context
FROM scratch
ADD base.tar /
COPY cryptvol-operator /usr/bin/cryptvol-operator
LABEL org.opencontainers.image.title="cryptvol-operator"
LABEL org.opencontainers.image.source="https://github.com/cryptvol/cryptvol"
LABEL org.opencontainers.image.licenses="Apache-2.0"
USER 65532:65532
ENTRYPOINT ["/usr/bin/cryptvol-operator"]
