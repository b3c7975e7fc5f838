// The type grpc_socket_mutator, with which a program can set options of the
// sockets that gRPC makes. ChannelArguments::SetSocketMutator, which takes it,
// is public, but gRPC does not install the header that defines it
// (src/core/lib/iomgr/socket_mutator.h, unchanged since 1.36), so it is
// declared here. If gRPC's library lacks the functions below, CMake notices,
// and no file includes this header.
#ifndef ATTND_WIRE_GRPC_SOCKET_MUTATOR_H_
#define ATTND_WIRE_GRPC_SOCKET_MUTATOR_H_

#include <grpc/grpc.h>
#include <grpc/support/sync.h>

// NOLINTBEGIN(readability-identifier-naming): gRPC's names.
enum grpc_fd_usage : int;

struct grpc_mutate_socket_info {
  int fd;
  grpc_fd_usage usage;
};

struct grpc_socket_mutator_vtable {
  bool (*mutate_fd)(int fd, grpc_socket_mutator* mutator);
  int (*compare)(grpc_socket_mutator* a, grpc_socket_mutator* b);
  void (*destroy)(grpc_socket_mutator* mutator);
  bool (*mutate_fd_2)(const grpc_mutate_socket_info* info,
                      grpc_socket_mutator* mutator);
  // Null. A later gRPC may look for more functions here.
  void* later[4];
};

struct grpc_socket_mutator {
  const grpc_socket_mutator_vtable* vtable;
  gpr_refcount refcount;
};

void grpc_socket_mutator_init(grpc_socket_mutator* mutator,
                              const grpc_socket_mutator_vtable* vtable);
// NOLINTEND(readability-identifier-naming)

#endif  // ATTND_WIRE_GRPC_SOCKET_MUTATOR_H_
