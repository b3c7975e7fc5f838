// Tests which options server and client set on the unix socket between them.
#include <gtest/gtest.h>
#include <sys/socket.h>
#include <sys/un.h>

#include <algorithm>
#include <fstream>
#include <string>
#include <vector>

#include "client/attention_client.h"
#include "tests/server/life_server.h"

namespace attnd::server {
namespace {

int IntOption(int fd, int option) {
  int value = 0;
  socklen_t size = sizeof(value);
  getsockopt(fd, SOL_SOCKET, option, &value, &size);
  return value;
}

// Returns the sizes of the send buffers at both ends of the connections on the
// unix socket `path`. Both ends are in this process, and only one has the name.
std::vector<int> SendBuffers(const std::string& path) {
  std::vector<int> buffers;
  for (int fd = 0; fd < 1024; ++fd) {
    for (const auto name : {getsockname, getpeername}) {
      sockaddr_un address{};
      socklen_t size = sizeof(address);
      if (name(fd, reinterpret_cast<sockaddr*>(&address), &size) == 0 &&
          address.sun_family == AF_UNIX && path == address.sun_path &&
          IntOption(fd, SO_ACCEPTCONN) == 0) {
        buffers.push_back(IntOption(fd, SO_SNDBUF));
      }
    }
  }
  return buffers;
}

TEST(UnixSocketTest, BothEndsHaveRoomForMoreThanTheDefault) {
#ifndef ATTND_HAS_SOCKET_MUTATOR
  GTEST_SKIP() << "this gRPC has no socket mutator";
#endif
  const auto server = StartServer();
  ASSERT_TRUE(server);
  const client::AttentionClient client({.target = "unix:" + SocketPath()});
  ASSERT_TRUE(client.GetServerInfo().ok());
  int64_t most = 0;
  std::ifstream("/proc/sys/net/core/wmem_max") >> most;
  const int expected = 2 * static_cast<int>(std::min<int64_t>(512 << 10, most));
  EXPECT_EQ(SendBuffers(SocketPath()), std::vector<int>(2, expected));
}

}  // namespace
}  // namespace attnd::server
