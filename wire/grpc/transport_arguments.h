// Options of gRPC that both ends set alike, because messages travel fast only
// if the two ends agree.
#ifndef ATTND_WIRE_GRPC_TRANSPORT_ARGUMENTS_H_
#define ATTND_WIRE_GRPC_TRANSPORT_ARGUMENTS_H_

namespace grpc {
class ChannelArguments;
}

namespace attnd {

// Sets the sizes of frames, writes and socket buffers of a server or a channel.
void SetTransportArguments(grpc::ChannelArguments* arguments);

// Sets the buffers of the connected socket `fd`. Call it for a socket that gRPC
// has neither connected nor accepted itself: SetTransportArguments covers
// gRPC's own sockets.
void SetSocketBuffers(int fd);

}  // namespace attnd

#endif  // ATTND_WIRE_GRPC_TRANSPORT_ARGUMENTS_H_
