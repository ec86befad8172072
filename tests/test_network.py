"""Tests reach no other machine: what tries is refused by name, here and in the processes that tests start."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

TRIES = """
import contextlib, socket, subprocess, sys, threading

def test_by_name():
    socket.create_connection(("celltransfer.invalid", 80))

def test_by_address():
    socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b"", ("192.0.2.1", 9))

def test_that_catches_it():
    with contextlib.suppress(BaseException):
        socket.create_connection(("192.0.2.2", 80), timeout=1)

def test_in_a_thread():
    thread = threading.Thread(target=socket.gethostbyname, args=("threads.invalid",))
    thread.start()
    thread.join()

def test_of_a_child():
    code = "import requests; requests.get('https://celltransfer.invalid', timeout=5)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "ProxyError" in done.stderr

def test_on_this_machine():
    with socket.create_server(("127.0.0.1", 0)) as server:
        socket.create_connection(("localhost", server.getsockname()[1])).close()
"""


def test_what_leaves_this_machine_is_refused_by_name(tmp_path):
    shutil.copy(Path(__file__).with_name("conftest.py"), tmp_path)
    (tmp_path / "test_tries.py").write_text(TRIES)
    command = [sys.executable, "-m", "pytest", "-n", "1", "-p", "no:cacheprovider", "--import-mode=importlib", "-rEf"]
    env = {name: value for name, value in os.environ.items() if name != "CELLTRANSFER_TEST_DOWNLOAD"}
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)
    assert "4 errors" in done.stdout, done.stdout
    assert "test_of_a_child" not in done.stdout
    assert "test_on_this_machine" not in done.stdout
    for test, host in (
        ("by_name", "celltransfer.invalid"),
        ("by_address", "192.0.2.1"),
        ("that_catches_it", "192.0.2.2"),
        ("in_a_thread", "threads.invalid"),
    ):
        assert f"test_tries.py::test_{test} tried to reach {host}; tests may not use the network." in done.stdout
