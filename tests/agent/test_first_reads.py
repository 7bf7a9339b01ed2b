"""Records that several threads of a new process read at once, before anything was read there."""

from __future__ import annotations

import subprocess
import sys

from persisting import attempt_record

from outlast.checkpoint.manifest import seal

READ = """
import sys, threading
from outlast.checkpoint.manifest import AttemptRecord, unseal
sys.setswitchinterval(1e-6)
data = bytes.fromhex(sys.argv[1])
together = threading.Barrier(8)

def read():
    together.wait()
    assert unseal(data, AttemptRecord, "key").attempt == 1

threads = [threading.Thread(target=read) for _ in range(8)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
"""


def test_threads_that_read_a_record_for_the_first_time_end_no_process():
    """msgspec builds what it knows of a kind at the first use, and a second thread that came meanwhile met half of it: SIGSEGV."""
    data = seal(attempt_record()).hex()
    codes = [
        subprocess.run([sys.executable, "-c", READ, data], capture_output=True, timeout=60).returncode
        for _ in range(8)
    ]
    assert codes == [0] * 8
