#include "server/listen_address.h"

#include <gtest/gtest.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <cstring>
#include <fstream>
#include <sstream>
#include <string>
#include <vector>

namespace attnd::server {
namespace {

std::string TestPath() {
  const auto* test = ::testing::UnitTest::GetInstance()->current_test_info();
  return ::testing::TempDir() + "attnd_" + std::to_string(getpid()) +
         test->name();
}

bool Exists(const std::string& path) { return access(path.c_str(), F_OK) == 0; }

// A socket bound to `path`, listening or not.
int Bind(const std::string& path, bool listening) {
  const int fd = socket(AF_UNIX, SOCK_STREAM, 0);
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  std::strncpy(address.sun_path, path.c_str(), sizeof(address.sun_path) - 1);
  EXPECT_EQ(bind(fd, reinterpret_cast<sockaddr*>(&address), sizeof(address)),
            0);
  if (listening) {
    EXPECT_EQ(listen(fd, 1), 0);
  }
  return fd;
}

TEST(ListenAddressTest, ParsesBothKinds) {
  EXPECT_EQ(ListenAddress::Parse("127.0.0.1:50051")->port, 50051);
  EXPECT_EQ(ListenAddress::Parse("localhost:0")->Text(), "localhost:0");
  EXPECT_EQ(ListenAddress::Parse("[::1]:7")->host, "[::1]");
  EXPECT_EQ(ListenAddress::Parse("unix:/a/b")->unix_path, "/a/b");
  EXPECT_EQ(ListenAddress::Parse("unix:///a/b")->Text(), "unix:/a/b");
  EXPECT_EQ(ListenAddress::Parse("unix:rel")->unix_path, "rel");
}

TEST(ListenAddressTest, RefusesWhatIsNeither) {
  for (const char* text : {"", "host", ":1", "host:", "host:65536", "host:-1",
                           "host:http", "::1:5", "unix:", "unix:/a%20b"}) {
    EXPECT_FALSE(ListenAddress::Parse(text).ok()) << text;
  }
  EXPECT_FALSE(ListenAddress::Parse("unix:/" + std::string(200, 'x')).ok());
}

TEST(UnixSocketGuardTest, ASecondOneIsRefusedUntilTheFirstIsGone) {
  const std::string path = TestPath();
  {
    const auto first = UnixSocketGuard::Acquire(path, "--listen");
    ASSERT_TRUE(first.ok()) << first.status();
    const auto second = UnixSocketGuard::Acquire(path, "--listen");
    EXPECT_EQ(second.status().code(), absl::StatusCode::kAlreadyExists);
  }
  EXPECT_TRUE(UnixSocketGuard::Acquire(path, "--listen").ok());
  EXPECT_FALSE(Exists(path + ".lock"));
}

TEST(UnixSocketGuardTest, ReplacesAStaleSocket) {
  const std::string path = TestPath();
  close(Bind(path, /*listening=*/true));
  ASSERT_TRUE(Exists(path));
  const auto guard = UnixSocketGuard::Acquire(path, "--listen");
  EXPECT_TRUE(guard.ok()) << guard.status();
  EXPECT_FALSE(Exists(path));
}

TEST(UnixSocketGuardTest, LeavesALivingSocketAlone) {
  const std::string path = TestPath();
  const int fd = Bind(path, /*listening=*/true);
  EXPECT_FALSE(UnixSocketGuard::Acquire(path, "--listen").ok());
  EXPECT_TRUE(Exists(path));
  EXPECT_FALSE(Exists(path + ".lock"));
  close(fd);
  unlink(path.c_str());
}

TEST(UnixSocketGuardTest, DoesNotWaitForABusyListener) {
  const std::string path = TestPath();
  const int listener = Bind(path, /*listening=*/true);
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  std::strncpy(address.sun_path, path.c_str(), sizeof(address.sun_path) - 1);
  std::vector<int> clients;  // until the listener's queue is full
  for (int i = 0; i < 100; ++i) {
    clients.push_back(socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0));
    if (connect(clients.back(), reinterpret_cast<sockaddr*>(&address),
                sizeof(address)) != 0) {
      break;
    }
  }
  EXPECT_LT(clients.size(), 100U);
  EXPECT_EQ(UnixSocketGuard::Acquire(path, "--listen").status().code(),
            absl::StatusCode::kAlreadyExists);
  for (const int fd : clients) close(fd);
  close(listener);
  unlink(path.c_str());
}

TEST(UnixSocketGuardTest, LeavesOtherFilesAlone) {
  const std::string path = TestPath();
  std::ofstream(path) << "mine";
  EXPECT_FALSE(UnixSocketGuard::Acquire(path, "--listen").ok());
  EXPECT_TRUE(Exists(path));
  unlink(path.c_str());
}

TEST(UnixSocketGuardTest, ErrorsNameTheOption) {
  const std::string path = TestPath();
  const auto first = UnixSocketGuard::Acquire(path, "--listen");
  const auto locked = UnixSocketGuard::Acquire(path, "--shm-socket");
  EXPECT_EQ(locked.status().message(),
            "--shm-socket: another server listens on " + path + " (" + path +
                ".lock is locked)");
  const auto nowhere =
      UnixSocketGuard::Acquire("/no/such/folder/x", "--listen");
  EXPECT_EQ(nowhere.status().message().rfind("--listen: cannot open ", 0), 0U)
      << nowhere.status();
  const std::string file = path + ".file";
  std::ofstream(file) << "mine";
  const auto taken = UnixSocketGuard::Acquire(file, "--listen");
  EXPECT_EQ(taken.status().message(),
            "--listen: " + file + " exists and is no socket");
  unlink(file.c_str());
}

TEST(AddressFileTest, HoldsOneAddressALine) {
  const std::string path = TestPath();
  const auto written = AddressFile::Write(path, {"a:1", "unix:/b"});
  ASSERT_TRUE(written.ok()) << written.status();
  std::ifstream file(path);
  std::stringstream text;
  text << file.rdbuf();
  EXPECT_EQ(text.str(), "a:1\nunix:/b\n");
  EXPECT_FALSE(AddressFile::Write("/no/such/folder/file", {"a:1"}).ok());
}

TEST(AddressFileTest, GoesWithItsServerUnlessAnotherTookItsPlace) {
  const std::string path = TestPath();
  {
    const auto first = AddressFile::Write(path, {"a:1"});
    ASSERT_TRUE(first.ok()) << first.status();
    EXPECT_TRUE(Exists(path));
  }
  EXPECT_FALSE(Exists(path));
  auto first = AddressFile::Write(path, {"a:1"});
  const auto second = AddressFile::Write(path, {"b:1"});
  ASSERT_TRUE(second.ok()) << second.status();
  first = absl::CancelledError();
  EXPECT_TRUE(Exists(path));
}

}  // namespace
}  // namespace attnd::server
