# The image of this repository: flowdsl with the systems of domains/ and adapters/. docs/how-to/deploy.md has the one for a project of yours.
FROM python:3.13-slim AS build
WORKDIR /app
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1
RUN python -m venv .venv
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY flowdsl flowdsl
RUN .venv/bin/python -m pip install -c constraints.txt ".[systems,fast,encryption,otel]"

FROM python:3.13-slim
RUN useradd --system --uid 10001 --user-group --no-create-home --home-dir /nonexistent flowdsl
WORKDIR /app
COPY --from=build /app/.venv .venv
COPY domains domains
COPY adapters adapters
# Python writes no bytecode: the folder is root's, and may be mounted read-only.
ENV PATH=/app/.venv/bin:$PATH PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1
USER 10001:10001
EXPOSE 8084
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s --retries=3 \
  CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8084/health', timeout=4)"]
ENTRYPOINT ["flowdsl"]
CMD ["serve", "adapters.deployment:deployment", "--host", "0.0.0.0", "--log-json"]
