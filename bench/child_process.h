// A server in a process of its own, that says in a file where it listens.
#ifndef ATTND_BENCH_CHILD_PROCESS_H_
#define ATTND_BENCH_CHILD_PROCESS_H_

#include <sys/types.h>

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

namespace attnd::bench {

// A new empty folder below the system's temporary one, removed by its owner.
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

// Started by the constructor; gets SIGTERM from the destructor, which waits,
// and from the system where this process dies first.
class ChildProcess {
 public:
  // `command` is the program's path and its arguments; `address_file` is what
  // they say that it writes when it is ready. Throws std::runtime_error where
  // it ends before that, or takes a minute.
  ChildProcess(std::vector<std::string> command,
               const std::string& address_file);
  ~ChildProcess();
  ChildProcess(const ChildProcess&) = delete;
  ChildProcess& operator=(const ChildProcess&) = delete;

  // The lines of the address file: TCP first, then unix.
  const std::vector<std::string>& addresses() const { return addresses_; }

  // A line of /proc/PID/status, such as "VmRSS", in bytes.
  int64_t StatusBytes(const std::string& name) const;
  // Lets VmHWM begin anew from what is resident now.
  void ResetPeak() const;

 private:
  void End() const;

  pid_t pid_ = -1;
  std::vector<std::string> addresses_;
};

}  // namespace attnd::bench

#endif  // ATTND_BENCH_CHILD_PROCESS_H_
