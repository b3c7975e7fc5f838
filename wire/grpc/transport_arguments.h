// The options of gRPC that affect how fast messages travel. The client and the
// server set the same values, because both ends have to.
#ifndef ATTND_WIRE_GRPC_TRANSPORT_ARGUMENTS_H_
#define ATTND_WIRE_GRPC_TRANSPORT_ARGUMENTS_H_

namespace grpc {
class ChannelArguments;
}

namespace attnd {

// Sets the sizes of frames, writes and socket buffers of a server or a channel.
void SetTransportArguments(grpc::ChannelArguments* arguments);

// Sets the sizes of the buffers of the connected socket `fd`. Call it only for
// a socket that gRPC has not connected or accepted itself, because
// SetTransportArguments covers all other sockets.
void SetSocketBuffers(int fd);

}  // namespace attnd

#endif  // ATTND_WIRE_GRPC_TRANSPORT_ARGUMENTS_H_
