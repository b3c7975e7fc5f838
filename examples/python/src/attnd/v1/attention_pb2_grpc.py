"""AttentionService of attnd/v1/attention.proto for gRPC, with the names that grpc_tools
would give. It is made from descriptors, for the reason in attention_pb2.py."""

import grpc

from attnd.v1 import attention_pb2 as pb

_SERVICE = pb._FILE.service[0]  # pylint: disable=protected-access


def _path(method):
  return f'/{pb.DESCRIPTOR.package}.{_SERVICE.name}/{method.name}'


def _kind(method):
  """Returns gRPC's name for the kind of a method, such as "unary_stream"."""
  return '_'.join('stream' if streaming else 'unary' for streaming in
                  (method.client_streaming, method.server_streaming))


def _message(type_name):
  return getattr(pb, type_name.rpartition('.')[2])


class AttentionServiceStub:
  """Has a callable for each method, on a channel of grpc or grpc.aio."""

  def __init__(self, channel):
    for method in _SERVICE.method:
      setattr(self, method.name, getattr(channel, _kind(method))(
          _path(method),
          request_serializer=_message(method.input_type).SerializeToString,
          response_deserializer=_message(method.output_type).FromString))


class AttentionServiceServicer:
  """The base class of a server in Python. It has no methods of its own."""


def add_AttentionServiceServicer_to_server(servicer, server):
  """Serves the methods that the servicer has. Other methods are UNIMPLEMENTED."""
  server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(
      f'{pb.DESCRIPTOR.package}.{_SERVICE.name}', {
          method.name: getattr(grpc, _kind(method) + '_rpc_method_handler')(
              getattr(servicer, method.name),
              request_deserializer=_message(method.input_type).FromString,
              response_serializer=_message(
                  method.output_type).SerializeToString)
          for method in _SERVICE.method if hasattr(servicer, method.name)
      }),))
