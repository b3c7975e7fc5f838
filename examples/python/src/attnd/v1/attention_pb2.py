"""The messages and enums of attnd/v1/attention.proto, with the names that protoc
would give them.

This module makes them from descriptors when it is imported, because Python code
that protoc generates refuses every protobuf that is older than its generator. They
have their own descriptor pool, so a program can also load code that protoc generated
from the same contract or from another version of it.
"""

import pkgutil

from google.protobuf import descriptor_pb2, message_factory
from google.protobuf.internal import enum_type_wrapper

_FILES = descriptor_pb2.FileDescriptorSet.FromString(
    pkgutil.get_data('attnd', 'v1/attention.binpb'))
_FILE = _FILES.file[-1]  # comes after the files that it imports

for _name, _message in message_factory.GetMessages(_FILES.file).items():
  if _name.startswith(_FILE.package + '.'):
    _message.__module__ = __name__  # where pickle looks for the class
    globals()[_message.DESCRIPTOR.name] = _message

DESCRIPTOR = globals()[_FILE.message_type[0].name].DESCRIPTOR.file

for _name, _enum in DESCRIPTOR.enum_types_by_name.items():
  globals()[_name] = enum_type_wrapper.EnumTypeWrapper(_enum)
  globals().update((value.name, value.number) for value in _enum.values)
