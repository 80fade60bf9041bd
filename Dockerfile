# A scanner in a container: no network is needed to scan, and none should be given. For a smaller image give the options
# that make pip take a CPU build of PyTorch: --build-arg PIP_OPTIONS="--index-url ...".
#   docker build -t neuralsanitizer .
#   docker run --rm --network none -v "$PWD:/work" neuralsanitizer scan model.safetensors --arch mnist-cnn --data clean.npz
FROM python:3.12-slim
RUN useradd --create-home --uid 1000 scanner
WORKDIR /opt/neuralsanitizer
COPY pyproject.toml README.md LICENSE ./
COPY src src
ARG PIP_OPTIONS=""
RUN pip install --no-cache-dir $PIP_OPTIONS '.[demo,hf,onnx]'
USER scanner
WORKDIR /work
ENTRYPOINT ["neuralsanitizer"]
CMD ["--help"]
