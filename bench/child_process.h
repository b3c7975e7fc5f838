// Runs a server in its own process. The server writes to a file where it
// listens.
#ifndef ATTND_BENCH_CHILD_PROCESS_H_
#define ATTND_BENCH_CHILD_PROCESS_H_

#include <sys/types.h>

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

namespace attnd::bench {

// Makes a new empty folder in the system's folder for temporary files. The
// destructor removes it.
class TempFolder {
 public:
  TempFolder();
  ~TempFolder();
  TempFolder(const TempFolder&) = delete;
  TempFolder& operator=(const TempFolder&) = delete;
  std::string operator/(const std::string& name) const {
    return (path_ / name).string();
  }

 private:
  std::filesystem::path path_;
};

// The constructor starts the process. The destructor sends SIGTERM and waits.
// If this process dies first, the system sends SIGTERM.
class ChildProcess {
 public:
  // `command` has the path of the program and its arguments. They tell the
  // program to write `address_file` when it is ready. Throws std::runtime_error
  // if the process ends before that, or is not ready within a minute.
  ChildProcess(std::vector<std::string> command,
               const std::string& address_file);
  ~ChildProcess();
  ChildProcess(const ChildProcess&) = delete;
  ChildProcess& operator=(const ChildProcess&) = delete;

  // Returns the lines of the address file: first TCP, then unix.
  const std::vector<std::string>& addresses() const { return addresses_; }

  // Returns a line of /proc/PID/status, such as "VmRSS", in bytes.
  int64_t StatusBytes(const std::string& name) const;
  // Sets VmHWM to the memory that is resident now.
  void ResetPeak() const;

 private:
  void End() const;

  pid_t pid_ = -1;
  std::vector<std::string> addresses_;
};

}  // namespace attnd::bench

#endif  // ATTND_BENCH_CHILD_PROCESS_H_
