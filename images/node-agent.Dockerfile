# The node agent: runs as root on the node, with its devices; no shell.
# The same image is made without a container daemon by `cargo xtask images`, which reads this file and leaves the build
# context in target/images/context:  docker build -f images/node-agent.Dockerfile -t cryptvol.dev/node-agent:TAG target/images/context
FROM scratch
ADD node-agent.tar /
COPY cryptvol-node-agent /usr/bin/cryptvol-node-agent
LABEL org.opencontainers.image.title="cryptvol-node-agent"
LABEL org.opencontainers.image.source="https://github.com/cryptvol/cryptvol"
LABEL org.opencontainers.image.licenses="Apache-2.0"
ENTRYPOINT ["/usr/bin/cryptvol-node-agent"]
