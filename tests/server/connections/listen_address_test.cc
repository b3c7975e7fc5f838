#include "server/connections/listen_address.h"

#include <gtest/gtest.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/un.h>
#include <unistd.h>

#include <cstring>
#include <filesystem>
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

// Returns a socket that is bound to `path`.
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

TEST(UnixSocketTest, HasTheModeThatIsAskedForWhateverTheUmask) {
  const std::string path = TestPath();
  for (const mode_t umask_bits : {0000U, 0022U, 0777U}) {
    for (const mode_t mode : {0600U, 0660U, 0666U}) {
      const auto guard = UnixSocketGuard::Acquire(path, "--listen");
      ASSERT_TRUE(guard.ok()) << guard.status();
      const mode_t before = umask(umask_bits);
      const auto fd = ListenOnUnixSocket(path, SOCK_STREAM, mode, "--listen");
      umask(before);
      ASSERT_TRUE(fd.ok()) << fd.status();
      struct stat info {};
      ASSERT_EQ(stat(path.c_str(), &info), 0);
      EXPECT_EQ(info.st_mode & 07777U, mode);
    }
  }
  EXPECT_EQ(ListenOnUnixSocket("/no/such/folder/socket", SOCK_STREAM, 0600,
                               "--listen")
                .status()
                .message(),
            "--listen: cannot bind a socket to /no/such/folder/socket: No such "
            "file or directory");
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
  std::vector<int> clients;  // as many as fill the listener's queue
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
            "--listen: " + file + " exists and is not a socket");
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

// Makes paths to things that do not belong to a server, in a folder that the
// destructor removes.
class OtherFiles {
 public:
  OtherFiles() {
    EXPECT_EQ(mkdir(folder_.c_str(), 0700), 0);
    const std::string path = folder_ + "/x";
    std::ofstream(path + ".text") << "127.0.0.1:1\nmine\n";
    std::ofstream(path + ".halfline") << "127.0.0.1:1";
    std::ofstream(path + ".port0") << "127.0.0.1:0\n";
    std::ofstream(path + ".long") << std::string(1 << 20, '\n');
    EXPECT_EQ(mkfifo((path + ".fifo").c_str(), 0600), 0);
    EXPECT_EQ(mkdir((path + ".folder").c_str(), 0700), 0);
    EXPECT_EQ(symlink("/no/such/file", (path + ".dangling").c_str()), 0);
    std::ofstream(path + ".empty") << "";
    EXPECT_EQ(symlink((path + ".empty").c_str(), (path + ".link").c_str()), 0);
    close(Bind(path + ".socket", /*listening=*/false));
    for (const char* kind : {".text", ".halfline", ".port0", ".long", ".fifo",
                             ".folder", ".dangling", ".link", ".socket"}) {
      paths_.push_back(path + kind);
    }
    // Only root can make a device. It is a new one, never a device of the
    // machine.
    const std::string device = path + ".device";
    if (mknod(device.c_str(), S_IFCHR | 0600, makedev(1, 3)) == 0) {
      paths_.push_back(device);
    }
  }
  ~OtherFiles() { std::filesystem::remove_all(folder_); }
  OtherFiles(const OtherFiles&) = delete;
  OtherFiles& operator=(const OtherFiles&) = delete;

  const std::vector<std::string>& paths() const { return paths_; }

 private:
  const std::string folder_ = TestPath() + "_others";
  std::vector<std::string> paths_;
};

// Returns the inode of `path`, without following links.
ino_t InodeOf(const std::string& path) {
  struct stat info {};
  EXPECT_EQ(lstat(path.c_str(), &info), 0) << path;
  return info.st_ino;
}

TEST(AddressFileTest, ReplacesNothingButItsOwnFiles) {
  const OtherFiles others;
  for (const std::string& path : others.paths()) {
    const ino_t inode = InodeOf(path);
    const absl::Status status = AddressFile::Check(path);
    EXPECT_EQ(status.code(), absl::StatusCode::kAlreadyExists) << path;
    EXPECT_EQ(status.message().rfind("--address-file: " + path, 0), 0U)
        << status;
    EXPECT_EQ(AddressFile::Write(path, {"a:1"}).status(), status);
    EXPECT_EQ(InodeOf(path), inode) << path;
  }
}

TEST(AddressFileTest, SaysWhatIsThere) {
  const std::string path = TestPath();
  ASSERT_EQ(mkfifo(path.c_str(), 0600), 0);
  EXPECT_EQ(AddressFile::Check(path).message(),
            "--address-file: " + path +
                " exists and is a named pipe: name a path that does not "
                "exist, an empty file, or an address file that a killed server "
                "left behind");
  unlink(path.c_str());
}

TEST(AddressFileTest, ReplacesWhatAKilledServerLeft) {
  const std::string path = TestPath();
  for (const char* left : {"", "127.0.0.1:50051\n", "unix:/run/a b\n",
                           "[::1]:1\nlocalhost:65535\nunix:rel\n"}) {
    std::ofstream(path) << left;
    EXPECT_TRUE(AddressFile::Check(path).ok()) << left;
    EXPECT_TRUE(AddressFile::Write(path, {"a:1"}).ok()) << left;
  }
}

TEST(AddressFileTest, FoldersThatAreNotThereAreSeenAtOnce) {
  EXPECT_FALSE(AddressFile::Check("/no/such/folder/file").ok());
  EXPECT_TRUE(AddressFile::Check("no_such_file").ok());
  EXPECT_TRUE(AddressFile::Check(TestPath()).ok());
}

TEST(AddressFileTest, FollowsNoLinkInPlaceOfItsTemporaryFile) {
  const std::string path = TestPath();
  const std::string victim = path + ".victim";
  std::ofstream(victim) << "mine";
  std::vector<std::string> links;
  for (const char* attempt : {".0.tmp", ".tmp"}) {
    const std::string link = path + "." + std::to_string(getpid()) + attempt;
    ASSERT_EQ(symlink(victim.c_str(), link.c_str()), 0);
    links.push_back(link);
  }
  const auto written = AddressFile::Write(path, {"a:1"});
  EXPECT_TRUE(written.ok()) << written.status();
  std::ifstream file(victim);
  std::string text;
  file >> text;
  EXPECT_EQ(text, "mine");
  unlink(victim.c_str());
  for (const std::string& link : links) unlink(link.c_str());
}

TEST(AddressFileTest, LeavesALinkThatTookItsPlace) {
  const std::string path = TestPath();
  {
    const auto written = AddressFile::Write(path, {"a:1"});
    ASSERT_TRUE(written.ok()) << written.status();
    ASSERT_EQ(rename(path.c_str(), (path + ".moved").c_str()), 0);
    ASSERT_EQ(symlink((path + ".moved").c_str(), path.c_str()), 0);
  }
  EXPECT_TRUE(Exists(path));
  EXPECT_TRUE(Exists(path + ".moved"));
  unlink(path.c_str());
  unlink((path + ".moved").c_str());
}

TEST(UnixSocketGuardTest, LocksNothingButItsOwnFiles) {
  const OtherFiles others;
  for (const std::string& other : others.paths()) {
    const std::string path = other + "2";
    const std::string lock = path + ".lock";
    ASSERT_EQ(rename(other.c_str(), lock.c_str()), 0);
    const ino_t inode = InodeOf(lock);
    const absl::Status status =
        UnixSocketGuard::Acquire(path, "--listen").status();
    EXPECT_EQ(status.code(), absl::StatusCode::kAlreadyExists) << status;
    EXPECT_NE(status.message().find(lock), std::string::npos) << status;
    EXPECT_EQ(InodeOf(lock), inode) << lock;
    EXPECT_FALSE(Exists("/no/such/file"));
  }
}

TEST(UnixSocketGuardTest, RemovesNothingThatTookItsSocketsPlace) {
  const std::string path = TestPath();
  {
    const auto guard = UnixSocketGuard::Acquire(path, "--listen");
    ASSERT_TRUE(guard.ok()) << guard.status();
    std::ofstream(path) << "mine";
  }
  EXPECT_TRUE(Exists(path));
  EXPECT_FALSE(Exists(path + ".lock"));
  unlink(path.c_str());
}

}  // namespace
}  // namespace attnd::server
