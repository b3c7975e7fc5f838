#include "wire/grpc/transport_arguments.h"

#include <grpcpp/support/channel_arguments.h>
#include <sys/socket.h>

#ifdef ATTND_HAS_SOCKET_MUTATOR
#include "wire/grpc/socket_mutator.h"
#endif

namespace attnd {
namespace {

// The size of the send buffer of a unix socket. The kernel doubles it, and cuts
// it to net.core.wmem_max. With the default of 208 KiB, a writer fills the
// buffer and sleeps until the reader has taken most of it. By then the reader
// has nothing left and sleeps. So the two ends wait for each other about sixty
// times in 12 MiB. This size keeps both busy. Sizes of 1 and 2 MiB were not
// faster.
constexpr int kUnixSendBufferBytes = 512 << 10;

#ifdef ATTND_HAS_SOCKET_MUTATOR

void SetSocketMutator(grpc::ChannelArguments* arguments) {
  static constexpr grpc_socket_mutator_vtable kVtable = {
      .mutate_fd = nullptr,
      .compare = [](grpc_socket_mutator*, grpc_socket_mutator*) { return 0; },
      .destroy = [](grpc_socket_mutator* mutator) { delete mutator; },
      .mutate_fd_2 =
          [](const grpc_mutate_socket_info* info, grpc_socket_mutator*) {
            SetSocketBuffers(info->fd);
            return true;
          },
      .later = {}};
  auto* const mutator = new grpc_socket_mutator;
  grpc_socket_mutator_init(mutator, &kVtable);
  arguments->SetSocketMutator(mutator);  // takes ownership
}

#else

void SetSocketMutator(grpc::ChannelArguments* /*arguments*/) {}

#endif

}  // namespace

void SetTransportArguments(grpc::ChannelArguments* arguments) {
  // The frames are the largest that gRPC allows, so that a message of megabytes
  // needs few frames and few writes. A write is still small enough for the
  // reader to find its bytes in the cache. gRPC chooses the flow control
  // windows by probing. Fixed windows of 1 to 64 MiB made a unix socket 10 to
  // 20 % slower, because the sender ran too far ahead for the cache.
  arguments->SetInt(GRPC_ARG_HTTP2_MAX_FRAME_SIZE, 16777215);
  arguments->SetInt(GRPC_ARG_HTTP2_WRITE_BUFFER_SIZE, 1 << 20);
  SetSocketMutator(arguments);
}

void SetSocketBuffers(int fd) {
  // The kernel tunes the buffers of a TCP socket unless somebody sets them.
  int domain = 0;
  socklen_t size = sizeof(domain);
  if (getsockopt(fd, SOL_SOCKET, SO_DOMAIN, &domain, &size) == 0 &&
      domain == AF_UNIX) {
    // If this fails, the connection works, but more slowly.
    setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &kUnixSendBufferBytes,
               sizeof(kUnixSendBufferBytes));
  }
}

}  // namespace attnd
