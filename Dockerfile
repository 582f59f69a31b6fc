# Two images from one file: `server` carries no torch and no compiler, `jobs` trains and exports.

FROM python:3.11-slim AS base
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PYTHONUNBUFFERED=1
WORKDIR /app
# A fixed user, so that named volumes and host folders can be given to it; the folders are its own from the start,
# because a new named volume takes over the owner of the folder it is mounted on.
RUN useradd --uid 1000 --create-home foldserve \
    && mkdir /models /runs /cache && chown foldserve:foldserve /models /runs /cache
COPY constraints.txt ./
RUN pip install --constraint constraints.txt setuptools
COPY pyproject.toml README.md foldserve.py ./
COPY demo demo
COPY export export
COPY imaging imaging
COPY serving serving
COPY training training

FROM base AS jobs
RUN pip install --constraint constraints.txt --no-build-isolation torch==2.13.0 '.[train,export,cpu]'
ENV XDG_CACHE_HOME=/cache
USER foldserve
WORKDIR /
ENTRYPOINT ["foldserve"]

FROM base AS server
RUN pip install --constraint constraints.txt --no-build-isolation '.[cpu,native]'
USER foldserve
WORKDIR /
EXPOSE 8001
ENTRYPOINT ["foldserve"]
CMD ["serve", "--repository", "/models", "--host", "0.0.0.0"]
