# Builds three images: `server` contains no PyTorch and no compiler, `jobs` trains and exports, `ui` is the page.

FROM python:3.11-slim AS base
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore PYTHONUNBUFFERED=1
WORKDIR /app
# A fixed user id, so that host folders can be given to it. The user owns the folders from the start, because a new
# named volume takes over the owner of the folder that it is mounted on.
RUN useradd --uid 1000 --create-home foldserve \
    && mkdir /models /runs /cache && chown foldserve:foldserve /models /runs /cache
COPY constraints.txt pyproject.toml README.md LICENSE ./
# The dependencies are installed with an empty package instead of the sources, so that a change of the sources does
# not reinstall them.
RUN pip install --quiet --constraint constraints.txt setuptools \
    && mkdir foldserve && touch foldserve/__init__.py

FROM base AS jobs
RUN pip install --quiet --constraint constraints.txt --no-build-isolation torch==2.13.0 '.[train,export,client]' \
    && rm -rf build foldserve.egg-info
COPY . .
RUN pip install --quiet --no-deps --no-build-isolation --force-reinstall .
ENV XDG_CACHE_HOME=/cache
USER 1000
WORKDIR /home/foldserve
ENTRYPOINT ["foldserve"]

FROM base AS ui
COPY constraints-ui.txt ./
RUN pip install --quiet --constraint constraints-ui.txt --no-build-isolation '.[ui]' \
    && rm -rf build foldserve.egg-info \
    && mkdir /corrections && chown foldserve:foldserve /corrections
COPY . .
RUN pip install --quiet --no-deps --no-build-isolation --force-reinstall .
USER 1000
WORKDIR /
EXPOSE 7860
ENTRYPOINT ["foldserve"]
CMD ["ui", "--host", "0.0.0.0"]

FROM base AS server
# `--build-arg RUNTIME=gpu`: the server for CUDA, with CUDA and cuDNN but not the driver.
ARG RUNTIME=cpu
RUN pip install --quiet --constraint constraints.txt --no-build-isolation ".[${RUNTIME},native]" \
    && rm -rf build foldserve.egg-info
COPY . .
RUN pip install --quiet --no-deps --no-build-isolation --force-reinstall .
# By number: Kubernetes' runAsNonRoot cannot tell who a name is. Any other works as well: nothing is written,
# and the working directory is nobody's home, which only its owner may enter.
USER 1000
WORKDIR /
EXPOSE 8000 8001 8002
# On 0.0.0.0 anyone may call, so the server uses the grpcio transport; --trust-callers chooses native (docs/serving.md).
ENTRYPOINT ["foldserve"]
CMD ["serve", "--repository", "/models", "--host", "0.0.0.0"]
