from __future__ import annotations

import ctypes
import importlib.util
import os
import subprocess
import sys

import pytest

from crane_x7_vla.errors import ConfigError
from lift import rendering

MAKE = "from lift import make_env; make_env('mujoco', 'PickUp-CRANE-X7').close()"
EGL, OSMESA, OPENGL = "libEGL.so.1", "libOSMesa.so.8", "libGL.so.1"


class Library:
    """Stands for a loaded library."""


@pytest.fixture
def libraries(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """Names of the libraries that can be loaded; empty at first. MUJOCO_GL is unset, there is no GPU."""
    present: set[str] = set()

    def load(name: str, mode: int = ctypes.DEFAULT_MODE) -> Library:
        if name not in present:
            raise OSError(f"{name}: cannot open shared object file")
        return Library()

    monkeypatch.setattr(ctypes, "CDLL", load)
    # Setting comes first, so that what choose_gl sets is undone as well.
    for name in ("MUJOCO_GL", "LP_NUM_THREADS"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    monkeypatch.setitem(sys.modules, "mujoco.rendering.classic.gl_context", None)
    monkeypatch.setattr(rendering, "has_gpu", lambda: False)
    return present


def run(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Another interpreter runs ``code`` with these environment variables, MUJOCO_GL being unset otherwise."""
    inherited = {key: value for key, value in os.environ.items() if key not in ("MUJOCO_GL", "PYOPENGL_PLATFORM")}
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, env={**inherited, **environment}
    )


@pytest.mark.parametrize(
    ("present", "gpu", "chosen"),
    [
        ({OSMESA}, False, "osmesa"),
        ({OSMESA}, True, "osmesa"),
        ({EGL, OPENGL}, False, "egl"),
        ({EGL, "libOpenGL.so.0"}, True, "egl"),
        ({EGL, OPENGL, OSMESA}, False, "osmesa"),
        ({EGL, OPENGL, OSMESA}, True, "egl"),
        # libEGL alone does not let MuJoCo be imported.
        ({EGL, OSMESA}, True, "osmesa"),
    ],
)
def test_the_choice_follows_from_libraries_and_gpu(
    libraries: set[str], monkeypatch: pytest.MonkeyPatch, present: set[str], gpu: bool, chosen: str
) -> None:
    libraries.update(present)
    monkeypatch.setattr(rendering, "has_gpu", lambda: gpu)
    monkeypatch.setattr(rendering, "_egl_starts", lambda: True)
    assert rendering.choose_gl() == chosen
    assert os.environ["MUJOCO_GL"] == chosen
    assert os.environ["LP_NUM_THREADS"] == "0"


def test_a_gpu_without_its_graphics_driver_is_left_alone(libraries: set[str], monkeypatch: pytest.MonkeyPatch) -> None:
    libraries.update({EGL, OPENGL, OSMESA})
    monkeypatch.setattr(rendering, "has_gpu", lambda: True)
    monkeypatch.setattr(rendering, "_egl_starts", lambda: False)
    assert rendering.choose_gl() == "osmesa"


def test_without_any_library_the_error_says_what_to_install(libraries: set[str]) -> None:
    assert not libraries
    with pytest.raises(ConfigError, match=r"no OpenGL library.*apt-get install.* libosmesa6") as caught:
        rendering.choose_gl()
    assert "\n" not in str(caught.value)
    assert "MUJOCO_GL" not in os.environ


@pytest.mark.parametrize("value", ["egl", "osmesa", "EGL ", "glfw"])
def test_the_users_choice_is_respected(libraries: set[str], monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    libraries.update({EGL, OPENGL, OSMESA})
    monkeypatch.setenv("MUJOCO_GL", value)
    monkeypatch.setenv("LP_NUM_THREADS", "2")
    assert rendering.choose_gl() == value.strip().lower()
    assert os.environ["MUJOCO_GL"] == value
    assert os.environ["LP_NUM_THREADS"] == "2"


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("vulkan", "MUJOCO_GL is 'vulkan', which renders nothing; expected egl or osmesa"),
        ("disable", "MUJOCO_GL is 'disable', which renders nothing"),
        ("egl", "MUJOCO_GL is 'egl', but libEGL.so.1 with libGL.so.1 cannot be loaded. Install"),
        ("osmesa", "MUJOCO_GL is 'osmesa', but libOSMesa.so.8 cannot be loaded. Install"),
    ],
)
def test_a_choice_that_cannot_render_is_an_error(
    libraries: set[str], monkeypatch: pytest.MonkeyPatch, value: str, message: str
) -> None:
    libraries.add(EGL)
    monkeypatch.setenv("MUJOCO_GL", value)
    with pytest.raises(ConfigError, match=message):
        rendering.choose_gl()


@pytest.mark.parametrize(
    ("value", "left"), [(None, None), ("osmesa", "osmesa"), ("egl", "disable"), ("invalid", "disable")]
)
def test_without_cameras_nothing_needs_to_render(
    libraries: set[str], monkeypatch: pytest.MonkeyPatch, value: str | None, left: str | None
) -> None:
    """MuJoCo's import fails with a MUJOCO_GL it does not know, and with one whose library is missing."""
    libraries.add(OSMESA)
    if value is not None:
        monkeypatch.setenv("MUJOCO_GL", value)
    rendering.choose_no_gl()
    assert os.environ.get("MUJOCO_GL") == left


def test_a_simulator_without_cameras_steps_where_opengl_cannot_be_used() -> None:
    code = """
import numpy as np
from lift import make_env
env = make_env('mujoco', 'PickUp-CRANE-X7', cameras=())
(observation,) = env.reset(np.array([1]))
result = env.step(observation.state[None])
print(dict(result.observations[0].images), result.observations[0].stamp)
"""
    done = run(code, MUJOCO_GL="invalid")
    assert done.stdout.strip() == "{} 0.1", done.stderr


def test_a_driver_that_does_not_start_is_one_line() -> None:
    """EGL's loader finds no driver; where there is no EGL at all, the line is another one."""
    code = f"""
from crane_x7_vla.errors import ConfigError
try:
    {MAKE}
except ConfigError as error:
    print(error)
"""
    done = run(code, MUJOCO_GL="egl", __EGL_VENDOR_LIBRARY_FILENAMES="/nonexistent.json")
    (line,) = done.stdout.splitlines()
    assert "egl" in line, done.stderr
    assert "Install Mesa's software renderer with: apt-get install" in line


@pytest.mark.parametrize("between", ["", "import os; os.environ['MUJOCO_GL'] = 'osmesa'"])
def test_rendering_works_also_when_mujoco_was_imported_first(between: str) -> None:
    done = run(f"import mujoco\n{between}\n{MAKE}\nprint('rendered')")
    assert done.stdout.strip() == "rendered", done.stderr


def test_the_same_libraries_tell_whether_egl_starts() -> None:
    """The probe agrees with what MuJoCo's own EGL does, and leaves EGL fit for use."""
    try:
        ctypes.CDLL(EGL)
    except OSError:
        pytest.skip("no libEGL.so.1 here")
    code = """
from lift import rendering
started = rendering._egl_starts()
import mujoco
try:
    mujoco.GLContext(8, 8).free()
except ImportError:
    print(started, False)
else:
    print(started, True)
"""
    assert run(code, MUJOCO_GL="egl").stdout.split() in (["True", "True"], ["False", "False"])
    none = run(code, MUJOCO_GL="egl", __EGL_VENDOR_LIBRARY_FILENAMES="/nonexistent.json")
    assert none.stdout.split() == ["False", "False"], none.stderr


def test_rendering_and_tensorflow_live_in_one_process() -> None:
    """Both bring an LLVM: without care the second one takes the first one's symbols and crashes."""
    if importlib.util.find_spec("tensorflow") is None:
        pytest.skip("TensorFlow is not installed")
    done = run(f"import tensorflow\n{MAKE}\nprint('rendered')", MUJOCO_GL="osmesa")
    assert done.stdout.strip() == "rendered", f"{done.returncode} {done.stderr[-2000:]}"
