// The options of gRPC that decide how fast messages travel. They work only if
// both ends of a connection set them, so client and server call the same
// functions.
#ifndef ATTND_WIRE_GRPC_TRANSPORT_ARGUMENTS_H_
#define ATTND_WIRE_GRPC_TRANSPORT_ARGUMENTS_H_

namespace grpc {
class ChannelArguments;
}

namespace attnd {

// Sets the sizes of HTTP/2 frames, of writes and of socket buffers for a gRPC
// server or channel.
void SetTransportArguments(grpc::ChannelArguments* arguments);

// Sets the sizes of the buffers of the connected socket `fd`. Call it only for
// a socket that gRPC has not connected or accepted itself, because
// SetTransportArguments covers all other sockets.
void SetSocketBuffers(int fd);

}  // namespace attnd

#endif  // ATTND_WIRE_GRPC_TRANSPORT_ARGUMENTS_H_
