"""One chain of Langevin dynamics in a process of its own.

Chains cannot share a process: OpenMM's Reference platform, the fastest one for small molecules on a CPU, draws the
noise of all Contexts from one global generator without a lock. Two threads got the same random numbers now and then,
and the seed decided nothing.

The child runs this file as a script and needs only OpenMM and NumPy, so that it starts in half a second and the
caller's script needs no `if __name__ == "__main__"`. Messages are .npz archives on its standard input and output, each
after its length. When the caller ends, however that happens, the pipe closes and the child ends.
"""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
from typing import IO, Any, Self

import numpy as np
import openmm
from numpy.typing import NDArray

CONSTRAINT_TOLERANCE = 1e-6


class ChainError(RuntimeError):
    """A chain blew up, or its process ended."""


class ChainProcess:
    """The caller's end of a chain.

    Parameters
    ----------
    system : str
        The serialised System.
    positions : ndarray, shape (n_atoms, 3)
        Start, in nm.
    velocities : ndarray, shape (n_atoms, 3), optional
        Velocities in nm/ps; by default drawn at the temperature.
    temperature, friction, timestep : float
        K, 1/ps, ps.
    seeds : (int, int)
        For the thermostat and the velocities.
    platform : str
        OpenMM's name of the platform.
    properties : dict of str
        Its properties.
    """

    def __init__(
        self,
        *,
        system: str,
        positions: NDArray[np.float64],
        velocities: NDArray[np.float64] | None,
        temperature: float,
        friction: float,
        timestep: float,
        seeds: tuple[int, int],
        platform: str,
        properties: dict[str, str],
    ) -> None:
        # -P: this file's folder stays off the path, so that its neighbours do not hide other modules.
        self._process = subprocess.Popen(
            [sys.executable, "-P", __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        _send(
            self._input,
            system=system,
            positions=positions,
            velocities=np.empty(0) if velocities is None else velocities,
            numbers=[temperature, friction, timestep],
            seeds=seeds,
            platform=platform,
            properties=list(properties.items()),
        )

    def start(self, n_frames: int, stride: int, n_steps_before: int) -> None:
        """Let the chain make frames, `stride` steps apart, after steps that leave none; `finish` waits for them."""
        self._tell(plan=[n_frames, stride, n_steps_before])

    def finish(self) -> dict[str, NDArray[np.float64]]:
        """Return positions, energies and, after the last frame, velocities; ChainError if the chain blew up."""
        message = _receive(self._output)
        if message is None:
            raise ChainError(f"its process ended unexpectedly with code {self._process.wait()}")
        if "error" in message:
            raise ChainError(str(message["error"]))
        return message

    def kill(self) -> None:
        """End the process at once."""
        self._process.kill()
        self._process.wait()
        for stream in (self._input, self._output):
            try:
                stream.close()
            except BrokenPipeError:  # what was never read by the child
                continue

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    @property
    def _input(self) -> IO[bytes]:
        assert self._process.stdin is not None
        return self._process.stdin

    @property
    def _output(self) -> IO[bytes]:
        assert self._process.stdout is not None
        return self._process.stdout

    def _tell(self, **arrays: Any) -> None:
        try:
            _send(self._input, **arrays)
        except BrokenPipeError as error:
            raise ChainError(f"its process ended unexpectedly with code {self._process.wait()}") from error


def _send(stream: IO[bytes], **arrays: Any) -> None:
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    stream.write(buffer.tell().to_bytes(8, "little") + buffer.getvalue())
    stream.flush()


def _receive(stream: IO[bytes]) -> dict[str, NDArray[Any]] | None:
    """Return the next message, None at the end of the stream."""
    length = int.from_bytes(stream.read(8), "little")
    content = stream.read(length)
    if length == 0 or len(content) < length:
        return None
    with np.load(io.BytesIO(content), allow_pickle=False) as stored:
        return {name: stored[name] for name in stored.files}


def _context(task: dict[str, NDArray[Any]]) -> openmm.Context:
    temperature, friction, timestep = (float(number) for number in task["numbers"])
    integrator = openmm.LangevinMiddleIntegrator(temperature, friction, timestep)
    integrator.setRandomNumberSeed(int(task["seeds"][0]))
    integrator.setConstraintTolerance(CONSTRAINT_TOLERANCE)
    platform = openmm.Platform.getPlatformByName(str(task["platform"]))
    properties = {str(name): str(value) for name, value in task["properties"].reshape(-1, 2)}
    context = openmm.Context(openmm.XmlSerializer.deserialize(str(task["system"])), integrator, platform, properties)
    context.setPositions(task["positions"])
    if task["velocities"].size:
        context.setVelocities(task["velocities"])
    else:
        context.applyConstraints(CONSTRAINT_TOLERANCE)
        context.setVelocitiesToTemperature(temperature, int(task["seeds"][1]))
    return context


def _advance(context: openmm.Context, n_frames: int, stride: int, n_steps_before: int) -> dict[str, Any]:
    positions, energies = [], []
    context.getIntegrator().step(n_steps_before)
    for _ in range(n_frames):
        context.getIntegrator().step(stride)
        state = context.getState(getPositions=True, getEnergy=True)
        positions.append(state.getPositions(asNumpy=True)._value)
        energies.append(state.getPotentialEnergy()._value)
        if not (np.isfinite(energies[-1]) and np.isfinite(positions[-1]).all()):
            raise openmm.OpenMMException("the energy is not a finite number")
    velocities = context.getState(getVelocities=True).getVelocities(asNumpy=True)._value
    return {"positions": np.array(positions), "energies": np.array(energies), "velocities": velocities}


def _run(source: IO[bytes], sink: IO[bytes]) -> None:
    """Make a Context as the first message says, then frames for each further one, until there is none."""
    context = None
    while (task := _receive(source)) is not None:
        try:
            if context is None:
                context = _context(task)
            else:
                _send(sink, **_advance(context, *(int(number) for number in task["plan"])))
        except openmm.OpenMMException as error:
            _send(sink, error=str(error))
            return
        except BrokenPipeError:  # the caller has gone
            return


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to the caller, who ends this process
    messages = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever a library prints must not get among the messages
    _run(sys.stdin.buffer, messages)
