"""A `python` that starts in milliseconds: it forks from a process that has imported what is heavy.

    python forkserver.py SOCKET torch transformers    # the server
    FORKSERVER=SOCKET forkserver.py -m tnt.stages.mask ...  # the client, under the name `python`

A stage imports torch and transformers for 5 seconds and then works for a tenth of one. Only third
parties are imported beforehand: `tnt` comes from the client's working directory, as it always does.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import runpy
import socket
import struct
import sys
from pathlib import Path

HEADER = struct.Struct("!I")


def serve(path: str, preload: list[str]) -> None:
    """Fork once per client, until killed."""
    for name in preload:
        importlib.import_module(name)
    gc.freeze()  # or every child's first full collection touches, and so copies, all of it
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(path)
        server.listen()
        while True:
            client, _ = server.accept()
            if os.fork() == 0:
                server.close()
                _answer(client)
            client.close()
            with contextlib.suppress(ChildProcessError):
                while os.waitpid(-1, os.WNOHANG)[0]:
                    pass


def _answer(client: socket.socket) -> None:
    """Run the client's module in a child of this process and send back how it ended."""
    header, files, _, _ = socket.recv_fds(client, HEADER.size, 3)
    request = json.loads(client.recv(HEADER.unpack(header)[0], socket.MSG_WAITALL))
    child = os.fork()
    if child == 0:
        for number, file in enumerate(files):
            os.dup2(file, number)
        _run(**request)
    _, status = os.waitpid(child, 0)
    with contextlib.suppress(OSError):  # the client was killed
        client.sendall(HEADER.pack(abs(os.waitstatus_to_exitcode(status))))
    os._exit(0)


def _run(arguments: list[str], folder: str, environment: dict[str, str]) -> None:
    """Be `python -m MODULE ARGUMENT...` or `python -c CODE ARGUMENT...`."""
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    sys.path[0] = folder
    sys.argv = arguments[1:]
    status: object = 0
    try:
        if arguments[0] == "-c":
            exec(arguments[1], {"__name__": "__main__"})
        else:
            runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)
    except SystemExit as ended:
        status = ended.code or 0
    except BaseException:
        sys.excepthook(*sys.exc_info())
        status = 1
    if not isinstance(status, int):
        print(status, file=sys.stderr)
        status = 1
    with contextlib.suppress(OSError):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(status)


def ask(path: str, arguments: list[str]) -> int:
    """Have the server run `python ARGUMENTS` with this process's streams; return its status."""
    request = {
        "arguments": arguments,
        "folder": os.getcwd(),
        "environment": dict(os.environ),
    }
    message = json.dumps(request).encode()
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(path)
        socket.send_fds(client, [HEADER.pack(len(message))], [0, 1, 2])
        client.sendall(message)
        return int(HEADER.unpack(client.recv(HEADER.size))[0])


if __name__ == "__main__":
    if Path(sys.argv[0]).name == "python":
        sys.exit(ask(os.environ["FORKSERVER"], sys.argv[1:]))
    serve(sys.argv[1], sys.argv[2:])
