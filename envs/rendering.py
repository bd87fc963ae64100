"""Off-screen RGB-D from MuJoCo, fast on a CPU.

Shadows, multisampling and dense robot meshes take most of the time of a frame, pixels hardly any. ``fast`` leaves out
the first two and draws decimated meshes from a copy of the model that is used for rendering only. Where there are no
shadows or reflections, what lies outside a camera's frustum is left out too, and no pixel changes.
"""

from __future__ import annotations

import atexit
import copy
import math
import os
import weakref
from collections.abc import Collection
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from sim_eval.core.errors import SimEvalError
from sim_eval.core.types import FloatArray, RenderMode
from sim_eval.envs.opengl import REMEDY, choose_backend, new_context

if TYPE_CHECKING:
    import mujoco

# Meshes with fewer faces are not decimated: the fingers must keep their shape in the wrist camera.
DECIMATE_ABOVE_FACES = 1000
# Cell of the clustering grid as a share of the mesh's extent, so that the pedestal does not cost more than the arm.
CELL_SHARE = 1 / 20
HIDDEN_GROUP = 5
# A geom is left out when its bounding sphere lies this far outside the frustum: MuJoCo draws in single precision.
FRUSTUM_MARGIN = 1e-3  # metres
# Below this share of the geoms, to find those outside the frustum takes longer than to draw them.
CULLED_SHARE = 0.2
# Fields of the physics model that may change between episodes and are visible.
SYNCED_FIELDS = (
    "geom_size",
    "geom_rgba",
    "geom_pos",
    "geom_quat",
    "geom_rbound",
    "body_pos",
    "body_quat",
    "site_pos",
    "site_rgba",
    "cam_pos",
    "cam_quat",
    "cam_fovy",
)


@dataclass(frozen=True)
class SceneOptions:
    """The rendered parts of a model.

    Attributes:
        groups: MuJoCo's groups of visual geoms.
        hidden: geoms of these groups that are rendered neither in RGB nor in depth.
        sites: render MuJoCo's sites; most simulators mean them for people, some for policies.
        cell_metres: least cell of the grid by which ``fast`` decimates meshes; textures suffer a little.
        quads: number of parts into which ``fast`` cuts a side of a box or plane for its shading; None: the model's.
    """

    groups: tuple[int, ...] = (1,)
    hidden: frozenset[int] = frozenset()
    sites: bool = False
    cell_metres: float = 0.01
    quads: int | None = None


# Canvases of this process, and those of the process from which it was forked: to use or free one of those would hang.
_canvases: weakref.WeakSet[_Canvas] = weakref.WeakSet()
_inherited: list[_Canvas] = []
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=lambda: _inherited.extend(_canvases))


def cluster_faces(
    vertices: NDArray[np.float32], faces: NDArray[np.int32], cell: float
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Vertex clustering (Rossignac & Borrel 1993): vertices that share a grid cell become one.

    Args:
        vertices: [N, 3] metres.
        faces: [M, 3] indices into them.
        cell: edge of the grid's cells, metres.

    Returns:
        The vertices, with the first of each cell moved to the cell's mean, and the indices [K] of the remaining faces,
        whose corners :func:`cluster_index` maps to cells.
    """
    first, index = cluster_index(vertices, cell)
    count = np.bincount(index)
    mean = np.stack([np.bincount(index, vertices[:, axis]) / count for axis in range(3)], axis=1)
    moved = vertices.copy()
    moved[first] = mean
    corners = index[faces]
    alive = (corners[:, 0] != corners[:, 1]) & (corners[:, 1] != corners[:, 2]) & (corners[:, 2] != corners[:, 0])
    kept = np.flatnonzero(alive)
    _, unique = np.unique(row_numbers(np.sort(corners[kept], axis=1)), return_index=True)
    return moved, kept[np.sort(unique)]


def cluster_index(vertices: NDArray[np.float32], cell: float) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The first vertex of each occupied cell [C] and the cell of each vertex [N]."""
    cells = row_numbers(np.floor(vertices / cell).astype(np.int64))
    _, first, index = np.unique(cells, return_index=True, return_inverse=True)
    return first, index.reshape(-1)


def row_numbers(rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """A number for each row [N, K], in the order of the rows: NumPy sorts numbers faster."""
    low, high = rows.min(axis=0, initial=0), rows.max(axis=0, initial=0)
    numbers: NDArray[np.int64] = np.ravel_multi_index(tuple((rows - low).T), tuple(high - low + 1))
    return numbers


def decimate_meshes(model: mujoco.MjModel, geoms: Collection[int], least_cell: float) -> list[int]:
    """Decimates the dense meshes of the geoms in place; returns the geoms whose shape changed.

    Args:
        least_cell: least cell of the clustering grid, metres; a large mesh has larger cells.
    """
    done: dict[int, bool] = {}
    for geom in geoms:
        mesh = int(model.geom_dataid[geom])
        if mesh < 0 or mesh in done or model.geom_type[geom] != 7:  # mjGEOM_MESH
            continue
        done[mesh] = bool(model.mesh_facenum[mesh] > DECIMATE_ABOVE_FACES)
        if not done[mesh]:
            continue
        v = slice(model.mesh_vertadr[mesh], model.mesh_vertadr[mesh] + model.mesh_vertnum[mesh])
        start, stop = model.mesh_faceadr[mesh], model.mesh_faceadr[mesh] + model.mesh_facenum[mesh]
        vertices, faces = model.mesh_vert[v], model.mesh_face[start:stop].copy()
        cell = max(least_cell, CELL_SHARE * float(np.ptp(vertices, axis=0).max()))
        moved, kept = cluster_faces(vertices, faces, cell)
        first, index = cluster_index(vertices, cell)
        model.mesh_vert[v] = moved
        model.mesh_face[start : start + len(kept)] = first[index][faces[kept]]
        for corners in (model.mesh_facenormal, model.mesh_facetexcoord):
            corners[start : start + len(kept)] = corners[start:stop][kept]
        model.mesh_facenum[mesh] = len(kept)
    return [geom for geom in geoms if model.geom_type[geom] == 7 and done.get(int(model.geom_dataid[geom]), False)]


@lru_cache
def frustum_normals(fovy: float, aspect: float) -> FloatArray:
    """Outward unit normals [4, 3] of a frustum's sides, which meet in the camera; x right, y up, z backward.

    Args:
        fovy: vertical field of view, degrees.
        aspect: width by height.
    """
    y = math.tan(math.radians(fovy) / 2)
    x = aspect * y
    normals: FloatArray = np.array([(1, 0, x), (-1, 0, x), (0, 1, y), (0, -1, y)])
    normals /= np.linalg.norm(normals, axis=1, keepdims=True)
    return normals


class _Canvas:
    """One OpenGL context with one framebuffer, and a model to draw into it.

    Two MuJoCo contexts on one OpenGL context would silently draw into each other, so each canvas has its own.
    """

    def __init__(
        self, model: mujoco.MjModel, height: int, width: int, scene_options: SceneOptions, effects: bool
    ) -> None:
        """
        Args:
            model: owned by the canvas.
            effects: shadows, reflections, sky, multisampling.
        """
        import mujoco

        model.vis.global_.offheight, model.vis.global_.offwidth = height, width
        if not effects:
            model.vis.quality.offsamples = 0
            model.vis.quality.shadowsize = 0  # or MuJoCo reserves 64 MB for shadows all the same
            if scene_options.quads is not None:
                model.vis.quality.numquads = scene_options.quads
        try:
            self._gl = new_context(width, height)
            self._gl.make_current()
            self._context = mujoco.MjrContext(model, mujoco.mjtFontScale.mjFONTSCALE_100)
        except SimEvalError:
            raise
        except Exception as error:  # the remedy is the same for all errors of OpenGL
            raise SimEvalError(f"off-screen OpenGL ({choose_backend()}) does not start ({error}): {REMEDY}") from error
        mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN, self._context)
        self._context.readDepthMap = mujoco.mjtDepthMap.mjDEPTH_ZEROFAR
        self._closed = False
        self.model = model
        self.culls = not effects  # a shadow or reflection may be of a geom that the camera does not see
        self._groups = model.geom_group.copy()
        self._drawn = np.isin(self._groups, scene_options.groups)
        self._measure()
        self.scene = mujoco.MjvScene(model, maxgeom=2000)
        if not effects:
            for flag in ("SHADOW", "REFLECTION", "SKYBOX", "HAZE"):
                self.scene.flags[getattr(mujoco.mjtRndFlag, f"mjRND_{flag}")] = False
        self._option = mujoco.MjvOption()
        self._option.geomgroup[:] = 0
        self._option.geomgroup[list(scene_options.groups)] = 1
        if not scene_options.sites:
            self._option.sitegroup[:] = 0
        self._camera = mujoco.MjvCamera()
        self._camera.type = mujoco.mjtCamera.mjCAMERA_FIXED
        self._viewport = mujoco.MjrRect(0, 0, width, height)
        _canvases.add(self)
        # Registered after MuJoCo's own end of EGL, so it runs before it: a context freed later complains.
        atexit.register(_close_alive, weakref.ref(self))

    def sync(self, model: mujoco.MjModel) -> None:
        """Takes over the fields of the physics model that may have changed."""
        for name in SYNCED_FIELDS:
            getattr(self.model, name)[:] = getattr(model, name)
        self._measure()

    def draw(
        self, data: mujoco.MjData, camera: int, rgb: NDArray[np.uint8] | None, depth: NDArray[np.float32] | None
    ) -> None:
        """Draws once into rgb [H, W, 3] and the depth buffer [H, W], both with the bottom row first."""
        import mujoco

        self._gl.make_current()
        self._camera.fixedcamid = camera
        if self.culls:
            self.model.geom_group[:] = self._groups if camera in self._overviews else self._cull(data, camera)
        everything = mujoco.mjtCatBit.mjCAT_ALL
        mujoco.mjv_updateScene(self.model, data, self._option, None, self._camera, everything, self.scene)
        mujoco.mjr_render(self._viewport, self.scene, self._context)
        mujoco.mjr_readPixels(rgb, depth, self._viewport, self._context)

    def _measure(self) -> None:
        """Takes the bounding spheres of the geoms; a plane has none."""
        bound = self.model.geom_rbound
        self._radii = np.where(bound > 0, bound + FRUSTUM_MARGIN, np.inf)
        self._overviews: set[int] = set()  # cameras that see nearly all geoms

    def _cull(self, data: mujoco.MjData, camera: int) -> NDArray[np.int32]:
        """The geoms' groups [G], where those outside the camera's frustum are in one that is not drawn."""
        normals = frustum_normals(self.model.cam_fovy[camera], self._viewport.width / self._viewport.height)
        normals = normals @ data.cam_xmat[camera].reshape(3, 3).T
        distance = normals @ data.geom_xpos.T - (normals @ data.cam_xpos[camera])[:, None]  # [4, G] metres
        outside = (distance > self._radii).any(axis=0)
        if outside[self._drawn].mean() < CULLED_SHARE:
            self._overviews.add(camera)
        groups: NDArray[np.int32] = np.where(outside, HIDDEN_GROUP, self._groups)
        return groups

    def close(self) -> None:
        """Frees the context; may be called twice."""
        if not self._closed and self not in _inherited:
            self._closed = True
            self._gl.make_current()
            self._context.free()
            self._gl.free()


def _close_alive(reference: weakref.ref[_Canvas]) -> None:
    if (canvas := reference()) is not None:
        canvas.close()


class RgbdRenderer:
    """Renders a model's cameras at one size, from a copy of the model.

    ``fast`` reads RGB and depth from one pass. ``faithful`` takes RGB with all effects, and depth from a pass without
    multisampling, whose buffer would hold the depth of a point beside the pixel's centre.
    """

    def __init__(
        self,
        model: mujoco.MjModel,
        height: int,
        width: int,
        mode: RenderMode,
        scene_options: SceneOptions = SceneOptions(),
    ) -> None:
        choose_backend()
        own = copy.copy(model)
        own.geom_group[list(scene_options.hidden)] = HIDDEN_GROUP
        self.decimated: list[int] = []
        if mode == "fast":
            visible = [geom for geom in range(own.ngeom) if own.geom_group[geom] in scene_options.groups]
            self.decimated = decimate_meshes(own, visible, scene_options.cell_metres)
        self._mode, self._scene_options = mode, scene_options
        self._canvases = [_Canvas(own, height, width, scene_options, effects=mode == "faithful")]
        self._shape = height, width
        near = np.float64(np.float32(model.vis.map.znear * model.stat.extent))
        far = np.float64(np.float32(model.vis.map.zfar * model.stat.extent))
        # Reversed z buffer: 1 at near, 0 at far; z = near * far / (near + d * (far - near)).
        self._near_far = near, far

    @property
    def _depth_canvas(self) -> _Canvas:
        """Draws depth; in mode ``faithful`` it is another than that of RGB, and is made when it is first needed."""
        if self._mode == "faithful" and len(self._canvases) == 1:
            own = copy.copy(self._canvases[0].model)
            self._canvases.append(_Canvas(own, *self._shape, self._scene_options, effects=False))
        return self._canvases[-1]

    @property
    def drawn_model(self) -> mujoco.MjModel:
        """The model from which depth is rendered; decimated in mode ``fast``."""
        return self._depth_canvas.model

    @property
    def inherited(self) -> bool:
        """Whether it was made before this process was forked, and must not be used in it."""
        return any(canvas in _inherited for canvas in self._canvases)

    def sync(self, model: mujoco.MjModel) -> None:
        """Takes over an episode's changes to the physics model (sizes, colours, camera poses)."""
        for canvas in self._canvases:
            canvas.sync(model)

    def render(self, data: mujoco.MjData, camera: int) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
        """RGB uint8 [H, W, 3] and planar depth float32 [H, W] of the pixels' centres in metres, both upright."""
        rgb = np.empty((*self._shape, 3), np.uint8)
        buffer = np.empty(self._shape, np.float32)
        if self._mode == "fast":
            self._canvases[0].draw(data, camera, rgb, buffer)
        else:
            self._canvases[0].draw(data, camera, rgb, None)
            self._depth_canvas.draw(data, camera, None, buffer)
        near, far = self._near_far
        depth = (near * far / (near + buffer.astype(np.float64) * (far - near))).astype(np.float32)
        return np.ascontiguousarray(rgb[::-1]), np.ascontiguousarray(depth[::-1])

    def render_rgb(self, data: mujoco.MjData, camera: int) -> NDArray[np.uint8]:
        """RGB uint8 [H, W, 3] alone, upright."""
        rgb = np.empty((*self._shape, 3), np.uint8)
        self._canvases[0].draw(data, camera, rgb, None)
        return np.ascontiguousarray(rgb[::-1])

    def segmentation(self, data: mujoco.MjData, camera: int) -> NDArray[np.int32]:
        """Geom id of each pixel, int32 [H, W]; -1: none."""
        import mujoco

        scene = self._depth_canvas.scene
        flags = scene.flags.copy()
        scene.flags[mujoco.mjtRndFlag.mjRND_SEGMENT] = True
        scene.flags[mujoco.mjtRndFlag.mjRND_IDCOLOR] = True
        colour = np.empty((*self._shape, 3), np.uint8)
        self._depth_canvas.draw(data, camera, colour, None)
        scene.flags[:] = flags
        segment = colour[::-1].astype(np.int32) @ np.array([1, 1 << 8, 1 << 16], np.int32)
        geom_of = np.full(scene.ngeom + 1, -1, np.int32)
        for drawn in scene.geoms[: scene.ngeom]:
            if drawn.segid >= 0 and drawn.objtype == mujoco.mjtObj.mjOBJ_GEOM:
                geom_of[drawn.segid + 1] = drawn.objid
        geoms: NDArray[np.int32] = geom_of[segment]
        return geoms

    def close(self) -> None:
        """Frees the contexts; may be called twice."""
        for canvas in self._canvases:
            canvas.close()
        self._canvases = []
