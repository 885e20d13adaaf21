# Serves the generator.onnx of task=export, without torch.
#
#   docker build -t generator .
#   docker run --rm -p 127.0.0.1:8000:8000 -v "$PWD/generator.onnx:/model/generator.onnx:ro" generator
#
# Add keys of configs/serve.yaml at the end: `... generator rate=20 max_images=256`. Set an API key with
# `-e SERVE_API_KEY=...`.
FROM python:3.12.12-slim-bookworm

ENV PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1
RUN useradd --system --uid 10001 --no-create-home server
WORKDIR /app
COPY requirements-serve.txt .
RUN pip install --no-cache-dir -r requirements-serve.txt
COPY run.py LICENSE ./
COPY configs ./configs
COPY src ./src

USER server
EXPOSE 8000
# Without a shell: SIGTERM must reach the server, which then answers the requests that it has accepted.
ENTRYPOINT ["python", "run.py", "task=serve", "ckpt_path=/model/generator.onnx", "host=0.0.0.0", "port=8000"]
HEALTHCHECK --interval=10s --timeout=3s --start-period=20s \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/ready', timeout=2)"]
