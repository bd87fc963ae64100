"""Which OpenGL MuJoCo renders with off-screen, and its contexts, in forked processes too."""

from __future__ import annotations

import ctypes
import os
import sys
from contextlib import suppress
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from sim_eval.core.errors import SimEvalError

REMEDY = "install one with: apt-get install -y libegl1 libgl1-mesa-dri libosmesa6"
# Of any other value of MUJOCO_GL, MuJoCo chooses the module when it is imported.
MODULES = {"egl": "mujoco.egl", "osmesa": "mujoco.osmesa"}
EGL_PLATFORM_DEVICE_EXT, EGL_PLATFORM_SURFACELESS_MESA = 0x313F, 0x31DD
EGL_DEVICE_EXT, EGL_EXTENSIONS = 0x322C, 0x3055

_opened = False  # this process has made a context
_inherited = False  # the process from which this one was forked had, and this one has not started anew


def _after_fork() -> None:
    global _opened, _inherited
    others = getattr(sys.modules.get("mujoco.egl"), "EGL_DISPLAY", None)  # mujoco.Renderer makes contexts as well
    _opened, _inherited = False, _inherited or _opened or others is not None


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def _import_triton() -> None:
    """Imports torch's compiler, if it is installed, before OpenGL starts.

    Mesa's software renderer shows its LLVM to all that is loaded later. Triton, which has one of its own, would take
    Mesa's, and the process would crash when torch imports it.
    """
    if "triton" not in sys.modules and find_spec("triton") is not None:
        with suppress(ImportError):
            import_module("triton")


def _egl_function(name: str, result: Any, *arguments: Any) -> Any:
    """A function of an extension of EGL, from its C types; None: there is none of that name."""
    egl = ctypes.CDLL("libEGL.so.1")
    egl.eglGetProcAddress.restype = ctypes.c_void_p
    address = egl.eglGetProcAddress(name.encode())
    return ctypes.CFUNCTYPE(result, *arguments)(address) if address else None


def _egl_works() -> bool:
    """Whether libEGL loads and initialises a device."""
    pointer, number = ctypes.c_void_p, ctypes.c_int
    try:
        query = _egl_function("eglQueryDevicesEXT", ctypes.c_uint, number, pointer, pointer)
        get = _egl_function("eglGetPlatformDisplayEXT", pointer, ctypes.c_uint, pointer, pointer)
    except OSError:
        return False
    if not query or not get:
        return False
    devices, count = (pointer * 16)(), number(0)
    query(16, devices, ctypes.byref(count))
    initialize = ctypes.CDLL("libEGL.so.1").eglInitialize
    initialize.argtypes = [pointer, pointer, pointer]
    return any(initialize(get(EGL_PLATFORM_DEVICE_EXT, device, None), None, None) for device in devices[: count.value])


def _osmesa_works() -> bool:
    for name in ("libOSMesa.so.8", "libOSMesa.so.6", "libOSMesa.so"):
        try:
            ctypes.CDLL(name)
        except OSError:
            continue
        return True
    return False


def choose_backend() -> str:
    """``MUJOCO_GL``; if it is not set, sets it to EGL, else OSMesa.

    Raises:
        SimEvalError: neither is installed.
    """
    _import_triton()
    chosen = os.environ.get("MUJOCO_GL", "").lower().strip()
    if not chosen:
        if _egl_works():
            chosen = "egl"
        elif _osmesa_works():
            chosen = "osmesa"
        else:
            raise SimEvalError(f"no off-screen OpenGL (neither EGL nor OSMesa): {REMEDY}")
        os.environ["MUJOCO_GL"] = chosen
    return chosen


def new_context(width: int, height: int) -> Any:
    """A ``GLContext`` of MuJoCo's module for the chosen backend, whatever was chosen when MuJoCo was imported.

    Raises:
        SimEvalError: OpenGL was in use before this process was forked, and cannot start anew; or PyOpenGL has loaded
            another one.
        Exception: OpenGL does not start.
    """
    global _opened
    backend = choose_backend()
    loaded = getattr(sys.modules.get("OpenGL.platform"), "PLATFORM", None)
    if backend in MODULES and loaded and not type(loaded).__module__.endswith(backend):
        raise SimEvalError(
            f"PyOpenGL was imported before {backend} was chosen: set PYOPENGL_PLATFORM={backend}, or import it later"
        )
    module = import_module(MODULES.get(backend, "mujoco.gl_context"))
    if _inherited:
        _start_anew(backend, module)
    _opened = True
    return module.GLContext(width, height)


def _start_anew(backend: str, module: Any) -> None:
    """Gives a forked process a display of its own.

    A renderer's threads are not forked with it, and its next call would wait for them for ever. Mesa's software
    renderer starts new ones for a display of another platform. Of a GPU's driver nothing is known.
    """
    global _inherited
    if backend == "egl" and _renders_on_the_cpu(module.EGL_DISPLAY):
        own = module.EGL.eglGetPlatformDisplayEXT(EGL_PLATFORM_SURFACELESS_MESA, None, None)
        new = bool(own) and own.address != module.EGL_DISPLAY.address
        if new and module.EGL.eglInitialize(own, None, None) and _renders_on_the_cpu(own):
            module.EGL_DISPLAY, _inherited = own, False
            return
    raise SimEvalError(
        f"this process was forked from one that had rendered, and its OpenGL ({backend}) cannot start again: start "
        "processes by 'spawn' (in Gymnasium: make_vec(..., vector_kwargs={'context': 'spawn'}))"
    )


def _renders_on_the_cpu(display: Any) -> bool:
    """Whether the display's device is Mesa's software renderer."""
    pointer, number = ctypes.c_void_p, ctypes.c_int
    query = _egl_function("eglQueryDisplayAttribEXT", ctypes.c_uint, pointer, number, pointer)
    describe = _egl_function("eglQueryDeviceStringEXT", ctypes.c_char_p, pointer, number)
    device = pointer()
    known = query and describe and query(display, EGL_DEVICE_EXT, ctypes.byref(device))
    return bool(known) and b"EGL_MESA_device_software" in (describe(device, EGL_EXTENSIONS) or b"")
