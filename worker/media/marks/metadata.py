"""The marks that need no key: XMP in pictures, tags in video containers.

XMP holds IPTC's DigitalSourceType, which says that the file was made by AI, and China's AIGC label (GB 45438-2025, with
the namespace of TC260) where a producer is named. Players and editors that do not know them pass over them.
"""

from __future__ import annotations

import io
import json
import struct
import subprocess
import zipfile
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from xml.sax.saxutils import escape

from PIL import Image

from worker.base.errors import EncodeFailed
from worker.base.version import VERSION
from worker.media.ffmpeg import program
from worker.media.formats import FORMATS
from worker.media.marks.provenance import GENERATOR, Origin

REMUX_LIMIT_S = 120.0
_XMP_BOX = bytes.fromhex("be7acfcb97a942e89c71999491e3afac")  # ISO 16684-3: the type of an XMP box in ISO base media
_JPEG_XMP = b"http://ns.adobe.com/xap/1.0/\0"
_PNG_XMP = b"XML:com.adobe.xmp\0\0\0\0\0"
_PNG_HEADER_BYTES = 33
# Readers of a GIF's blocks follow length bytes: from any byte of the XMP this trailer leads them to its end.
_GIF_TRAILER = bytes([1, *range(255, -1, -1), 0])
_WEBP_HAS_XMP = 0x04


def aigc_label(producer: str, instance_id: str) -> str:
    """The value of the key AIGC: Label 1 is "made by AI"; what a platform that spreads the file adds is left empty."""
    values = {
        "Label": "1",
        "ContentProducer": producer,
        "ProduceID": instance_id.rpartition(":")[2],
        "ReservedCode1": "",
        "ContentPropagator": "",
        "PropagateID": "",
        "ReservedCode2": "",
    }
    return json.dumps(values, ensure_ascii=False, separators=(",", ":"))


def xmp_packet(origin: Origin, producer: str | None) -> bytes:
    label = "" if producer is None else f"<TC260:AIGC>{escape(aigc_label(producer, origin.instance_id))}</TC260:AIGC>"
    return (
        '<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>'
        '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
        '<rdf:Description rdf:about="" xmlns:Iptc4xmpExt="http://iptc.org/std/Iptc4xmpExt/2008-02-29/"'
        ' xmlns:xmp="http://ns.adobe.com/xap/1.0/" xmlns:xmpMM="http://ns.adobe.com/xap/1.0/mm/"'
        ' xmlns:TC260="http://www.tc260.org.cn/ns/AIGC/1.0/">'
        f"<Iptc4xmpExt:DigitalSourceType>{origin.uri}</Iptc4xmpExt:DigitalSourceType>"
        f"<xmp:CreatorTool>{GENERATOR} {VERSION}</xmp:CreatorTool>"
        f"<xmpMM:InstanceID>{origin.instance_id}</xmpMM:InstanceID>{label}"
        '</rdf:Description></rdf:RDF></x:xmpmeta><?xpacket end="w"?>'
    ).encode()


def embed(source: Path, target: Path, content_type: str, origin: Origin, producer: str | None) -> None:
    """Write the file `source` to `target` with its marks; pictures and sound stay as they are, to the bit.

    Raises EncodeFailed, OSError, and KeyError for a content type without a way to mark it.
    """
    if content_type in _TAGGED:
        _tag(source, target, content_type, origin, producer)
    elif content_type == "application/zip":
        _mark_zip(source, target, origin, producer)
    else:
        target.write_bytes(_INSERT[content_type](source.read_bytes(), xmp_packet(origin, producer)))


def _tag(source: Path, target: Path, content_type: str, origin: Origin, producer: str | None) -> None:
    tags = {"comment": f"Made by AI: {origin.uri}", "digitalSourceType": origin.uri}
    if producer is not None:
        tags["AIGC"] = aigc_label(producer, origin.instance_id)
    command = [
        *(str(program()), "-hide_banner", "-nostats", "-loglevel", "error", "-nostdin", "-y", "-i", f"file:{source}"),
        *("-map", "0", "-c", "copy"),
        *(word for name, value in tags.items() for word in ("-metadata", f"{name}={value}")),
        *_TAGGED[content_type],
        f"file:{target}",
    ]
    try:
        # A session of its own: Ctrl-C on the worker must not end it.
        subprocess.run(command, check=True, capture_output=True, timeout=REMUX_LIMIT_S, start_new_session=True)
    except subprocess.SubprocessError as failure:
        raise EncodeFailed("the finished video could not be marked as made by AI; try again") from failure
    if content_type == "video/mp4":
        packet = _XMP_BOX + xmp_packet(origin, producer)
        with target.open("ab") as file:
            file.write(struct.pack(">I4s", 8 + len(packet), b"uuid") + packet)


def _mark_zip(source: Path, target: Path, origin: Origin, producer: str | None) -> None:
    """Marks each PNG in it."""
    packet = xmp_packet(origin, producer)
    with zipfile.ZipFile(source) as given, zipfile.ZipFile(target, "w", zipfile.ZIP_STORED) as marked:
        for entry in given.infolist():
            marked.writestr(zipfile.ZipInfo(entry.filename), _into_png(given.read(entry), packet))


def _into_jpeg(content: bytes, packet: bytes) -> bytes:
    """An APP1 segment behind the APP0 that JFIF wants first."""
    start = 2
    if content[2:4] == b"\xff\xe0":
        start += 2 + int.from_bytes(content[4:6], "big")
    segment = _JPEG_XMP + packet
    return content[:start] + struct.pack(">HH", 0xFFE1, 2 + len(segment)) + segment + content[start:]


def _into_png(content: bytes, packet: bytes) -> bytes:
    chunk = b"iTXt" + _PNG_XMP + packet
    length, checksum = struct.pack(">I", len(chunk) - 4), struct.pack(">I", zlib.crc32(chunk))
    return content[:_PNG_HEADER_BYTES] + length + chunk + checksum + content[_PNG_HEADER_BYTES:]


def _into_gif(content: bytes, packet: bytes) -> bytes:
    end = content.rindex(b";")
    return content[:end] + b"\x21\xff\x0bXMP DataXMP" + packet + _GIF_TRAILER + content[end:]


def _into_webp(content: bytes, packet: bytes) -> bytes:
    chunks = content[12:]
    if chunks[:4] != b"VP8X":  # a plain picture: its header becomes that of an extended one
        chunks = _webp_header(content) + chunks
    chunks = chunks[:8] + bytes([chunks[8] | _WEBP_HAS_XMP]) + chunks[9:]
    chunks += b"XMP " + struct.pack("<I", len(packet)) + packet + bytes(len(packet) % 2)
    return b"RIFF" + struct.pack("<I", 4 + len(chunks)) + b"WEBP" + chunks


def _webp_header(content: bytes) -> bytes:
    with Image.open(io.BytesIO(content), formats=["WEBP"]) as image:
        alpha = 0x10 if image.has_transparency_data else 0
        sides = b"".join(struct.pack("<I", side - 1)[:3] for side in image.size)
    return b"VP8X" + struct.pack("<II", 10, alpha) + sides


_INSERT: Mapping[str, Callable[[bytes, bytes], bytes]] = {
    "image/jpeg": _into_jpeg,
    "image/png": _into_png,
    "image/gif": _into_gif,
    "image/webp": _into_webp,
}
_TAGGED: Mapping[str, tuple[str, ...]] = {
    # Without this flag ffmpeg drops what it has no own name for. The second -movflags replaces the first.
    "video/mp4": (*FORMATS["mp4"].muxer, "-movflags", "+faststart+use_metadata_tags"),
    "video/webm": FORMATS["webm"].muxer,
}
