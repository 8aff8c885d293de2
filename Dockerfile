# demeanor with PostgreSQL and Redis, on a CPU. Build: docker build -t demeanor .
# Alone: docker run -e DEMEANOR_API_KEYS=a-secret -p 127.0.0.1:8000:8000 -v ./my-desk:/desk demeanor   (with PostgreSQL and Redis: compose.yaml)
FROM python:3.12-slim AS build
WORKDIR /src
# torch without CUDA is 200 MB instead of 3 GB
RUN python -m venv /venv && /venv/bin/pip install --no-cache-dir --index-url https://download.pytorch.org/whl/cpu torch==2.13.0
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY demeanor demeanor
# files of the package that are links lead here
COPY docs/tour docs/tour
COPY stacks/smollm2 stacks/smollm2
RUN /venv/bin/pip install --no-cache-dir -c constraints.txt '.[postgres,redis,retrieval]'

FROM python:3.12-slim
# the kernels are compiled at their first use; any g++ of this Debian will do
# hadolint ignore=DL3008
RUN apt-get update && apt-get install -y --no-install-recommends g++ && rm -rf /var/lib/apt/lists/* \
    && useradd --create-home --uid 1000 demeanor && mkdir -p /desk/runs && chown -R demeanor /desk
COPY --from=build /venv /venv
ENV PATH=/venv/bin:$PATH PYTHONUNBUFFERED=1
# by number, so that Kubernetes' runAsNonRoot can check it
USER 1000
WORKDIR /desk
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=5s --start-period=120s --retries=3 \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/readyz', timeout=4)"]
STOPSIGNAL SIGTERM
ENTRYPOINT ["demeanor"]
CMD ["serve", "stack.yaml", "--host", "0.0.0.0"]
