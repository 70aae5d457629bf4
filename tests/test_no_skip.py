"""`--no-skip`, with which CI runs, lets no skip pass."""

import shutil
import subprocess
import sys
from pathlib import Path

SKIPPING = {
    "test_call.py": "import pytest\ndef test_it():\n    pytest.skip('no browser')\n",
    "test_mark.py": "import pytest\n@pytest.mark.skipif(True, reason='no disk')\ndef test_it():\n    pass\n",
    "test_module.py": "import pytest\npytest.skip('no network', allow_module_level=True)\n",
}


def test_every_kind_of_skip_fails_and_tells_its_reason(tmp_path):
    shutil.copy(Path(__file__).with_name("no_skip.py"), tmp_path / "conftest.py")
    for name, text in SKIPPING.items():
        (tmp_path / name).write_text(text)

    def tests(*options):
        command = [sys.executable, "-m", "pytest", "--continue-on-collection-errors", *options]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True).stdout

    assert "3 skipped" in tests()
    strict = tests("--no-skip")
    assert "1 failed, 2 errors" in strict
    assert all(reason in strict for reason in ("no browser", "no disk", "no network"))
