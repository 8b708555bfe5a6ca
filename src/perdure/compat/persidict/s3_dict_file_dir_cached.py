"""The names of persidict's module `s3_dict_file_dir_cached`."""

from ...mapping.family import S3Dict
from ...mapping.family import S3Dict as S3Dict_FileDirCached

S3DICT_NEW_DEFAULT_BASE_DIR = "__s3_dict__"

__all__ = ["S3DICT_NEW_DEFAULT_BASE_DIR", "S3Dict", "S3Dict_FileDirCached"]
