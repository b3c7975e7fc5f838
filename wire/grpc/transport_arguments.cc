#include "wire/grpc/transport_arguments.h"

#include <grpcpp/support/channel_arguments.h>
#include <sys/socket.h>

#ifdef ATTND_HAS_SOCKET_MUTATOR
#include "wire/grpc/socket_mutator.h"
#endif

namespace attnd {
namespace {

// What a unix socket holds between its ends: the kernel doubles it, and cuts it
// to net.core.wmem_max. By default a writer fills 208 KiB, sleeps until the
// reader has taken most of them, and wakes when the reader sleeps in turn: both
// ends wait for each other some sixty times in 12 MiB. This much keeps both
// busy; 1 or 2 MiB gained nothing over it.
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
  arguments->SetSocketMutator(mutator);  // takes it
}

#else

void SetSocketMutator(grpc::ChannelArguments* /*arguments*/) {}

#endif

}  // namespace

void SetTransportArguments(grpc::ChannelArguments* arguments) {
  // A message of megabytes is cut into few frames, the largest that gRPC has,
  // and goes out in few writes; a write ends soon enough for the reader to take
  // its bytes from the cache. Windows stay as gRPC finds them by probing: fixed
  // ones of 1 to 64 MiB let the sender run ahead of the cache, which took a
  // tenth to a fifth off a unix socket's rate.
  arguments->SetInt(GRPC_ARG_HTTP2_MAX_FRAME_SIZE, 16777215);
  arguments->SetInt(GRPC_ARG_HTTP2_WRITE_BUFFER_SIZE, 1 << 20);
  SetSocketMutator(arguments);
}

void SetSocketBuffers(int fd) {
  // TCP finds its own size, until one is set.
  int domain = 0;
  socklen_t size = sizeof(domain);
  if (getsockopt(fd, SOL_SOCKET, SO_DOMAIN, &domain, &size) == 0 &&
      domain == AF_UNIX) {
    // Where it fails the connection is slower, not broken.
    setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &kUnixSendBufferBytes,
               sizeof(kUnixSendBufferBytes));
  }
}

}  // namespace attnd
