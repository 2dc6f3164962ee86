# Two images from one file: `semsam`, the default, whose command chooses what it does (`semsam serve`, `semsam demo`, `semsam train`, ...),
# and `label-studio`, the release that semsam is tested with.
FROM python:3.11-slim AS base
ENV PYTHONUNBUFFERED=1 PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore
# one user for both images: they share the volume with the credentials
RUN useradd --uid 10001 --create-home --shell /usr/sbin/nologin semsam \
    && install -d -o semsam -g semsam -m 0700 /credentials \
    && install -d -o semsam -g semsam /data

FROM base AS label-studio
RUN pip install label-studio==1.23.2
COPY --chmod=0755 scripts/label-studio-entrypoint.sh /usr/local/bin/
USER semsam
EXPOSE 8080
HEALTHCHECK --interval=10s --timeout=5s --start-period=180s --retries=6 \
    CMD ["python", "-c", "import urllib.request as r; r.urlopen('http://127.0.0.1:8080/health', timeout=4)"]
CMD ["label-studio-entrypoint.sh"]

FROM base AS semsam
WORKDIR /app
# An index with the CPU build of torch makes the image several times smaller than the default build for CUDA:
#   docker compose build --build-arg PIP_EXTRA_INDEX_URL=...
ARG PIP_EXTRA_INDEX_URL=""
COPY requirements.txt ./
RUN pip install -r requirements.txt
COPY pyproject.toml README.md LICENSE NOTICE ./
COPY semsam_model semsam_model
COPY backend backend
COPY configs configs
COPY samples samples
# editable, because configs/ and samples/ are found beside the packages
RUN pip install --no-deps -e .
ENV SEMSAM_DATA_DIR=/data
USER semsam
EXPOSE 9090
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s --retries=6 \
    CMD ["python", "-c", "import urllib.request as r; r.urlopen('http://127.0.0.1:9090/health', timeout=4)"]
CMD ["semsam", "serve", "--host", "0.0.0.0", "--port", "9090"]
