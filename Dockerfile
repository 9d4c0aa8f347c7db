# potstill on a machine with NVIDIA GPUs. The machine needs the driver and the NVIDIA container toolkit, nothing else:
#   docker build -t potstill .
#   docker run --rm --gpus all --ipc=host -v "$PWD:/work" potstill distill --teacher … --corpus … --output_dir student
# torch's wheel brings CUDA. gcc is for torch.compile and Triton, which build code when a training starts.
FROM python:3.11-slim
RUN apt-get update \
    && apt-get install -y --no-install-recommends gcc g++ libc6-dev \
    && rm -rf /var/lib/apt/lists/*
ARG TORCH=torch==2.13.0
RUN pip install --no-cache-dir "$TORCH"
COPY pyproject.toml README.md LICENSE /src/
COPY src /src/src
RUN pip install --no-cache-dir "/src[onnx,tensorboard,energy]"
COPY recipes /recipes
WORKDIR /work
ENTRYPOINT ["potstill"]
CMD ["--help"]
