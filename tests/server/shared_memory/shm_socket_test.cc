// Tests the shared-memory socket with correct and with hostile programs.
#include "server/shared_memory/shm_socket.h"

#include <dirent.h>
#include <gtest/gtest.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>

#include <cstring>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "tests/server/memfd.h"
#include "tests/support/eventually.h"

namespace attnd::server {
namespace {

using ::attnd::testing::Eventually;

using namespace std::string_literals;

constexpr int64_t kPageBytes = 4096;
const std::string& RegisterMessage() {
  static const auto& message = *new std::string("ASHM\1\0\1\0"s);
  return message;
}

// A connection of one client.
class Peer {
 public:
  explicit Peer(const std::string& path)
      : fd_(socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0)) {
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    std::memcpy(address.sun_path, path.c_str(), path.size() + 1);
    connected_ = connect(fd_.get(), reinterpret_cast<sockaddr*>(&address),
                         sizeof(address)) == 0;
  }

  bool connected() const { return connected_; }

  bool Send(std::string message, const std::vector<int>& descriptors = {}) {
    iovec part{.iov_base = message.data(), .iov_len = message.size()};
    std::vector<char> control(CMSG_SPACE(descriptors.size() * sizeof(int)));
    msghdr header{};
    header.msg_iov = &part;
    header.msg_iovlen = 1;
    if (!descriptors.empty()) {
      header.msg_control = control.data();
      header.msg_controllen = control.size();
      cmsghdr* const rights = CMSG_FIRSTHDR(&header);
      rights->cmsg_level = SOL_SOCKET;
      rights->cmsg_type = SCM_RIGHTS;
      rights->cmsg_len = CMSG_LEN(descriptors.size() * sizeof(int));
      std::memcpy(CMSG_DATA(rights), descriptors.data(),
                  descriptors.size() * sizeof(int));
    }
    return sendmsg(fd_.get(), &header, MSG_NOSIGNAL) >= 0;
  }

  // Returns the next reply, or an empty text if the server has closed the
  // connection.
  std::string Receive() {
    pollfd polled{.fd = fd_.get(), .events = POLLIN, .revents = 0};
    EXPECT_EQ(poll(&polled, 1, 20'000), 1) << "no reply";
    char buffer[1024];
    const ssize_t size = recv(fd_.get(), buffer, sizeof(buffer), MSG_DONTWAIT);
    return size > 0 ? std::string(buffer, static_cast<size_t>(size)) : "";
  }

  // Returns the error text with which the server answers `message`.
  std::string Refusal(const std::string& message,
                      const std::vector<int>& descriptors = {}) {
    EXPECT_TRUE(Send(message, descriptors));
    return ErrorText();
  }
  std::string ErrorText() {
    const std::string reply = Receive();
    EXPECT_EQ(reply.substr(0, 8), "ASHM\1\0\3\0"s);
    return reply.size() > 12 ? reply.substr(12) : "";
  }

  // Returns the handle of the new region.
  std::string Register(const UniqueFd& fd) {
    EXPECT_TRUE(Send(RegisterMessage(), {fd.get()}));
    const std::string reply = Receive();
    EXPECT_EQ(reply.substr(0, 8), "ASHM\1\0\1\0"s);
    EXPECT_EQ(reply.size(), 32U);
    return reply.substr(8, 16);
  }

 private:
  UniqueFd fd_;
  bool connected_ = false;
};

class ShmSocketTest : public ::testing::Test {
 protected:
  ShmSocketTest()
      : path_(::testing::TempDir() + "shm_" + std::to_string(getpid()) + "_" +
              ::testing::UnitTest::GetInstance()->current_test_info()->name()) {
  }

  void Listen(std::vector<uid_t> allowed = {}) {
    auto listening = ShmSocket::Listen(
        {.path = path_, .allowed_uids = std::move(allowed)}, registry_);
    ASSERT_TRUE(listening.ok()) << listening.status();
    socket_ = *std::move(listening);
  }

  static size_t OpenDescriptors() {
    size_t count = 0;
    DIR* const folder = opendir("/proc/self/fd");
    while (readdir(folder) != nullptr) ++count;
    closedir(folder);
    return count;
  }

  const std::string path_;
  RegionRegistry registry_{10 * kPageBytes};
  std::unique_ptr<ShmSocket> socket_;
};

TEST_F(ShmSocketTest, RegistersAndUnregisters) {
  Listen();
  Peer peer(path_);
  const UniqueFd memory = MakeMemfd(kPageBytes);
  const std::string first = peer.Register(memory);
  const std::string second = peer.Register(memory);
  EXPECT_NE(first, second);
  ASSERT_NE(registry_.Find(first), nullptr);
  EXPECT_EQ(registry_.Find(first)->size_bytes(), kPageBytes);
  EXPECT_TRUE(peer.Send("ASHM\1\0\2\0"s + first));
  EXPECT_EQ(peer.Receive(), "ASHM\1\0\2\0"s);
  EXPECT_EQ(registry_.Find(first), nullptr);
  EXPECT_NE(registry_.Find(second), nullptr);
  EXPECT_EQ(peer.Refusal("ASHM\1\0\2\0"s + first),
            "handle: expected one that this connection registered, got "
            "another one");
}

TEST_F(ShmSocketTest, RegionsGoWithTheirConnection) {
  Listen();
  const UniqueFd memory = MakeMemfd(kPageBytes);
  auto peer = std::make_unique<Peer>(path_);
  Peer other(path_);
  const std::string handle = peer->Register(memory);
  const std::string kept = other.Register(memory);
  const auto in_use = registry_.Find(handle);
  // A client cannot unregister a region of another client.
  other.Refusal("ASHM\1\0\2\0"s + handle);
  EXPECT_NE(registry_.Find(handle), nullptr);
  peer.reset();
  EXPECT_TRUE(Eventually([&] { return registry_.Find(handle) == nullptr; }));
  EXPECT_EQ(in_use->data()[kPageBytes - 1], std::byte{0});
  EXPECT_NE(registry_.Find(kept), nullptr);
  socket_.reset();
  EXPECT_EQ(registry_.Find(kept), nullptr);
}

TEST_F(ShmSocketTest, RefusalsOfMemoryLeaveTheConnectionOpen) {
  Listen();
  Peer peer(path_);
  EXPECT_EQ(peer.Refusal(RegisterMessage(), {MakeMemfd(kPageBytes, 0).get()}),
            "seals: expected F_SEAL_SHRINK, F_SEAL_GROW and F_SEAL_SEAL, got "
            "no F_SEAL_SHRINK");
  EXPECT_NE(peer.Refusal(RegisterMessage(), {MakeMemfd(11 * kPageBytes).get()}),
            "");
  EXPECT_NE(peer.Register(MakeMemfd(kPageBytes)), "");
}

TEST_F(ShmSocketTest, ClosesOnWhatIsNoRequest) {
  Listen();
  const size_t before = OpenDescriptors();
  const UniqueFd memory = MakeMemfd(kPageBytes);
  const int fd = memory.get();
  const std::pair<std::string, std::vector<int>> cases[] = {
      {"G", {}},
      {"GET / HTTP/1.1\r\n\r\n", {}},
      {std::string(100'000, 'x'), {}},
      {RegisterMessage(), {}},
      {RegisterMessage(), {fd, fd}},
      {RegisterMessage(), std::vector<int>(200, fd)},
      {"ASHM\1\0\2\0"s + std::string(16, 'h'), {fd}},
      {"ASHM\1\0\2\0"s, {}},
      {"ASHM\2\0\1\0"s, {fd}}};
  for (const auto& [message, descriptors] : cases) {
    Peer peer(path_);
    EXPECT_NE(peer.Refusal(message, descriptors), "");
    EXPECT_EQ(peer.Receive(), "") << "still open";
  }
  {
    Peer peer(path_);
    EXPECT_TRUE(peer.Send("", {fd}));
    EXPECT_EQ(peer.Receive(), "") << "still open";
  }
  // The server must have kept none of these descriptors. `memory` is one more.
  EXPECT_TRUE(Eventually([&] { return OpenDescriptors() <= before + 1; }));
}

TEST_F(ShmSocketTest, WhoDoesNotReadIsNotWaitedFor) {
  Listen();
  Peer silent(path_);
  // The client sends until the server closes the connection, because its
  // replies did not fit into the socket.
  int sent = 0;
  while (sent < 1'000'000 &&
         silent.Send("ASHM\1\0\2\0"s + std::string(16, 0))) {
    ++sent;
  }
  EXPECT_LT(sent, 1'000'000);
  Peer other(path_);
  EXPECT_NE(other.Register(MakeMemfd(kPageBytes)), "");
}

TEST_F(ShmSocketTest, ServesAllowedUidsOnly) {
  Listen({geteuid() + 1, geteuid() + 2});
  Peer peer(path_);
  EXPECT_EQ(peer.ErrorText(), "uid: expected one of --shm-allow-uids (" +
                                  std::to_string(geteuid() + 1) + "," +
                                  std::to_string(geteuid() + 2) + "), got " +
                                  std::to_string(geteuid()));
  EXPECT_EQ(peer.Receive(), "") << "still open";
  struct stat info {};
  ASSERT_EQ(stat(path_.c_str(), &info), 0);
  EXPECT_EQ(info.st_mode & 0777U, 0666U);
}

// Without --shm-allow-uids, only the mode decides who can connect. tests/e2e
// tests this with other users.
TEST_F(ShmSocketTest, TheModeOfTheSocketIsTheCallers) {
  for (const mode_t mode : {0600U, 0660U, 0666U}) {
    socket_.reset();
    auto listening = ShmSocket::Listen(
        {.path = path_, .mode = mode, .allowed_uids = {}}, registry_);
    ASSERT_TRUE(listening.ok()) << listening.status();
    socket_ = *std::move(listening);
    struct stat info {};
    ASSERT_EQ(stat(path_.c_str(), &info), 0);
    EXPECT_EQ(info.st_mode & 0777U, mode);
    EXPECT_NE(Peer(path_).Register(MakeMemfd(kPageBytes)), "");
  }
}

TEST_F(ShmSocketTest, TheLastReplyArrivesWhateverElseWasSent) {
  Listen();
  for (int i = 0; i < 200; ++i) {
    Peer peer(path_);
    for (int sent = 0; sent < 5; ++sent) peer.Send("garbage!");
    EXPECT_NE(peer.ErrorText(), "");
    EXPECT_EQ(peer.Receive(), "") << "still open";
  }
}

TEST_F(ShmSocketTest, AUidHasSoManyConnections) {
  Listen();
  std::vector<std::unique_ptr<Peer>> peers;
  for (int i = 0; i < ShmSocket::kMaxConnections; ++i) {
    peers.push_back(std::make_unique<Peer>(path_));
    ASSERT_NE(peers.back()->Refusal("ASHM\1\0\2\0"s + std::string(16, 'h')),
              "");
  }
  EXPECT_EQ(Peer(path_).ErrorText(),
            "connections: expected at most 64 of uid " +
                std::to_string(geteuid()) + ", got one more");
  peers.pop_back();
  EXPECT_TRUE(Eventually([&] {
    Peer peer(path_);
    return peer.Send(RegisterMessage(), {MakeMemfd(kPageBytes).get()}) &&
           peer.Receive().substr(0, 8) == RegisterMessage();
  }));
}

TEST_F(ShmSocketTest, GuardsItsPath) {
  Listen();
  struct stat info {};
  ASSERT_EQ(stat(path_.c_str(), &info), 0);
  EXPECT_EQ(info.st_mode & 0777U, 0600U);
  EXPECT_FALSE(
      ShmSocket::Listen({.path = path_, .allowed_uids = {}}, registry_).ok());
  EXPECT_TRUE(Peer(path_).connected());
  socket_.reset();
  EXPECT_NE(access(path_.c_str(), F_OK), 0);
  EXPECT_FALSE(
      ShmSocket::Listen({.path = std::string(200, 'x'), .allowed_uids = {}},
                        registry_)
          .ok());
}

}  // namespace
}  // namespace attnd::server
