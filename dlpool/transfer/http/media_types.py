"""Families of media types, and the file names of binary files. Pure.

Servers send login pages, captive portals and error documents with status 200 and
validators: only the media type distinguishes them from the file.
"""

from __future__ import annotations

from urllib.parse import unquote, urlsplit

_PAGES = {"text/html", "application/xhtml+xml", "application/vnd.wap.xhtml+xml"}
_DOCUMENTS = {"page", "json", "xml", "text"}  # families of error documents
# File name extensions whose content is never an HTML page.
_BINARY_NAMES = (
    # archives and compressed files
    "7z ace ar arj br bz2 cab cpio gz lha lrz lz lz4 lzh lzma lzo rar sit sitx sz tar "
    "tbz tbz2 tgz tlz txz "
    "tzst xz z zip zipx zst zstd",
    # packages, programs and their parts
    "aab apk appimage appx appxbundle bin conda crx deb dll drpm dylib egg elf exe "
    "flatpak gem ipa jar jmod ko "
    "msi msix msixbundle msp msu nupkg o pkg pyc rpm run snap so sys udeb vsix war "
    "wasm whl xpi",
    # disk images, firmware, virtual machines
    "box dmg dsk efi fd hex img iso nrg ova ovf qcow qcow2 raw rom toast vdi vhd vhdx "
    "vmdk wim",
    # models and arrays of numbers
    "arrow avro bag caffemodel ckpt ctranslate2 dat ddf feather fits fts gguf ggml h5 "
    "hdf hdf5 joblib keras "
    "lmdb mat mlmodel msgpack nc nc4 npy npz onnx orc parquet pb pickle pkl pt pte pth "
    "rdata rds safetensors "
    "tfevents tflite tfrecord torchscript zarr",
    # databases, genomes, maps, meshes
    "accdb bam bcf bcl blend bw cram db dcm dwg fbx fast5 fgb frm glb gpkg grb grb2 "
    "grib grib2 hic las laz ldb "
    "mbtiles mdb mrc nd2 nii pbf pmtiles pod5 sav shp sqlite sqlite3 stl tbi twobit "
    "2bit ply czi",
    # documents
    "doc docx epub mobi azw azw3 odg odp ods odt pdf ppt pptx ps xls xlsb xlsx djvu",
    # images
    "avif bmp cr2 cr3 dng exr gif heic heif ico icns j2k jp2 jpe jpeg jpg jxl nef orf "
    "png pnm ppm psd tga tif "
    "tiff webp xcf",
    # sound and film
    "3gp aac ac3 aif aiff alac amr ape asf avi caf dts f4v flac flv m2ts m4a m4b m4s "
    "m4v mid midi mka mkv mov "
    "mp2 mp3 mp4 mpeg mpg mxf oga ogg ogv opus ra rm swf vob wav webm wma wmv",
    # fonts, keys
    "eot otf ttc ttf woff woff2 der p12 pfx gpg sig",
)
_BINARY_EXTENSIONS = frozenset(
    name for names in _BINARY_NAMES for name in names.split()
)


def is_page(content_type: str | None) -> bool:
    """Return whether the media type means an HTML page."""
    return content_type in _PAGES


def is_same_family(one: str | None, other: str | None) -> bool:
    """Return whether two media types may be of two versions of one file.

    The types are in lower case and without parameters. A missing type matches every
    type (RFC 9110 section 8.3) except those that error documents have: HTML, JSON, XML
    and all other text.
    """
    first, second = _family(one), _family(other)
    return first == second or (
        None in (one, other) and not {first, second} & _DOCUMENTS
    )


def names_binary(url: str) -> bool:
    """Return whether the URL's file name has the extension of a binary file."""
    name = unquote(urlsplit(url).path).rpartition("/")[2].lower()
    return "." in name and name.rpartition(".")[2] in _BINARY_EXTENSIONS


def _family(content_type: str | None) -> str:
    if content_type is None:
        return "unknown"
    kind, _, subtype = content_type.partition("/")
    if content_type in _PAGES:
        return "page"
    if kind in ("application", "text"):
        if subtype in ("json", "x-json", "javascript") or subtype.endswith("+json"):
            return "json"
        if subtype == "xml" or subtype.endswith("+xml"):
            return "xml"
    if kind in ("audio", "video") or subtype in ("ogg", "mp4"):
        return "media"
    return "application" if kind == "binary" else kind
