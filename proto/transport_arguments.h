// How gRPC carries the contract's messages, where both ends have to agree for
// it to be quick. Knows no message.
#ifndef ATTND_PROTO_TRANSPORT_ARGUMENTS_H_
#define ATTND_PROTO_TRANSPORT_ARGUMENTS_H_

namespace grpc {
class ChannelArguments;
}

namespace attnd {

// Sets frames, writes and socket buffers of a server or a channel.
void SetTransportArguments(grpc::ChannelArguments* arguments);

// Sets the buffers of a connected socket that gRPC neither connected nor
// accepted itself. gRPC's own sockets get them through SetTransportArguments.
void SetSocketBuffers(int fd);

}  // namespace attnd

#endif  // ATTND_PROTO_TRANSPORT_ARGUMENTS_H_
