# The one image: the steps of the pipelines, and the server. Built from the repository's root: docker build .
# Not slim: it has the compiler that the solver is built with.
FROM python:3.11.14-bookworm AS builder
# An extra that this revision does not have is a warning, not an error.
ARG EXTRAS=gcp,kfp,serve,alerts
WORKDIR /build
RUN python -m venv --without-pip /opt/segwatch
COPY pyproject.toml setup.py constraints.txt README.md CHANGELOG.md LICENSE ./
COPY src ./src
RUN pip wheel --no-cache-dir --no-deps --wheel-dir /wheels . \
    && pip --python /opt/segwatch/bin/python install --no-cache-dir --no-compile -c constraints.txt \
        "$(echo /wheels/segwatch-*.whl)[${EXTRAS}]"
# unchecked-hash: the bytecode stays valid whatever happens to the files' times, and is never written again.
RUN /opt/segwatch/bin/python -m compileall -q -j 0 --invalidation-mode unchecked-hash /opt/segwatch/lib

FROM python:3.11.14-slim-bookworm
ARG REVISION=unknown
# Vertex AI and Cloud Run run any user; where a mounted volume insists on root, build with --build-arg RUN_AS=0.
ARG RUN_AS=10001
LABEL org.opencontainers.image.title="segwatch" \
      org.opencontainers.image.description="One One-Class SVM per segment of a metric, trained and scored warehouse to warehouse" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.revision="${REVISION}"
COPY --from=builder /opt/segwatch /opt/segwatch
# The root file system may be read-only: whatever wants a home or a cache finds it under /tmp.
ENV PATH=/opt/segwatch/bin:$PATH \
    HOME=/tmp \
    XDG_CACHE_HOME=/tmp/.cache \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1
WORKDIR /work
USER ${RUN_AS}
EXPOSE 8080
# No HEALTHCHECK: most containers of this image are steps that end; what serves is watched by its platform.
ENTRYPOINT ["segwatch"]
CMD ["serve"]
