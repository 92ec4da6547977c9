#!/usr/bin/env bash
# Installs torch into an environment: scripts/install_torch.sh PYTHON cpu|cuda|auto
#
# cpu: the build for the CPU, from torch's own index on Linux (PyPI's would bring gigabytes of CUDA along) and from PyPI on
# macOS. cuda: PyPI's build for Linux. auto: what is there, else cuda where NVIDIA's driver is and cpu where not. One that is
# there and of that kind is left alone, one of the other kind is replaced. TORCH_INDEX names a mirror of torch's
# index. docs/installing.md has the sizes.
set -euo pipefail

python=${1:?which python} kind=${2:?cpu, cuda or auto}
torch='torch>=2.6,<2.14' index=${TORCH_INDEX:-https://download.pytorch.org/whl/cpu}
pip() { "$python" -m pip "$@"; }
# The kind that is installed, read without loading it: a build for the CPU says so in its version, or has no CUDA.
installed() {
  "$python" -c 'import importlib.util, pathlib, re
spec = importlib.util.find_spec("torch")
text = pathlib.Path(spec.origin).with_name("version.py").read_text() if spec else ""
cuda = re.search(r"^cuda\b.*= *(.+)$", text, re.M)
print("none" if not cuda else "cpu" if cuda[1].strip() == "None" else "cuda")'
}

before=$(installed)
if [ "$kind" = auto ]; then
  kind=cpu
  if [ "$before" != none ]; then kind=$before; elif command -v nvidia-smi >/dev/null && [ "$(uname)" = Linux ]; then kind=cuda; fi
fi
case "$kind:$(uname)" in
  cpu:* | cuda:Linux) ;;
  cuda:*) echo "install_torch.sh: torch has no CUDA on $(uname); use TORCH=cpu" >&2; exit 2 ;;
  *) echo "install_torch.sh: TORCH is cpu, cuda or auto, not $kind" >&2; exit 2 ;;
esac

[ "$before" = none ] || [ "$before" = "$kind" ] || pip uninstall --quiet --yes torch
if [ "$kind:$(uname)" = cpu:Linux ]; then
  pip install --quiet --retries 1 "$torch" --index-url "$index" ||
    { echo "install_torch.sh: $index has not answered; pip's own index is asked" >&2; pip install --quiet "$torch"; }
else
  pip install --quiet "$torch"
fi
after=$(installed)
if [ "$after" != "$kind" ]; then
  echo "install_torch.sh: pip has installed a build for ${after}, not for $kind; pip config list says which index it asks" >&2
  [ "$kind" = cpu ] || exit 1
fi
