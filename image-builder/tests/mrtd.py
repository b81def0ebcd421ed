"""MRTD of a TDVF image, derived a second time: from the metadata, with hashlib alone."""

import hashlib
import struct
import sys
import uuid

image = open(sys.argv[1], "rb").read()
entry = image.rindex(uuid.UUID("e47a6535-984a-4798-865e-4685a7bf8ec2").bytes_le)
(back,) = struct.unpack_from("<I", image, entry - 6)
metadata = len(image) - back
signature, _, _, count = struct.unpack_from("<4sIII", image, metadata)
assert signature == b"TDVF"
digest = hashlib.sha384()
for number in range(count):
    offset, size, address, length, _, attributes = struct.unpack_from("<IIQQII", image, metadata + 16 + 32 * number)
    content = image[offset : offset + size].ljust(length, b"\0")
    if attributes & 2:
        continue
    for page in range(0, length, 4096):
        digest.update(b"MEM.PAGE.ADD".ljust(16, b"\0") + (address + page).to_bytes(8, "little") + bytes(104))
        for at in range(page, page + 4096, 256) if attributes & 1 else ():
            digest.update(b"MR.EXTEND".ljust(16, b"\0") + (address + at).to_bytes(8, "little") + bytes(104))
            digest.update(content[at : at + 256])
print(digest.hexdigest())
