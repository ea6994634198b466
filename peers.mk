# make peers   compares converted weights with timm on PyTorch, in an environment of its own
#
# make peers-openvino   runs our ONNX files in OpenVINO, there too
#
# make benchmark-peers   installs there what tools/benchmark.py compares speed with
#
# Not part of `make test`. PEERS="resnest14d resnest26d" chooses the models; without it, all eight.

PEERS ?=
PEERS_BIN := .venv-peers/bin
PEERS_RUN := runs/peers

.PHONY: peers golden benchmark-peers peers-openvino

.venv-peers/.done: tests/peers/requirements.txt
	python3 -m venv .venv-peers
	$(PEERS_BIN)/python -m pip --disable-pip-version-check --quiet install -r $<
	@touch $@

peers: setup .venv-peers/.done
	rm -rf $(PEERS_RUN)
	$(PEERS_BIN)/python tests/peers/write_timm.py $(PEERS_RUN) $(PEERS)
	.venv/bin/python tests/peers/check_ours.py $(PEERS_RUN)
	$(PEERS_BIN)/python tests/peers/read_back.py $(PEERS_RUN)
	rm -rf $(PEERS_RUN)

golden: .venv-peers/.done
	$(PEERS_BIN)/python tests/peers/write_timm.py --golden tests/golden/timm_logits.npz
	$(PEERS_BIN)/python tests/peers/write_small.py tests/golden

# Without dependencies: a torchvision made for another build of torch would replace the torch.
benchmark-peers: .venv-peers/.done tests/peers/requirements-benchmark.txt
	$(PEERS_BIN)/python -m pip --quiet install -r tests/peers/requirements-benchmark.txt
	$(PEERS_BIN)/python -m pip --quiet install --no-deps torchvision==0.28.0

peers-openvino: setup benchmark-peers
	rm -rf $(PEERS_RUN)
	.venv/bin/python tests/peers/write_onnx.py $(PEERS_RUN)
	$(PEERS_BIN)/python tests/peers/check_openvino.py $(PEERS_RUN)
	rm -rf $(PEERS_RUN)
