// The whole of attnctl but its process: what main() calls, and tests too.
#ifndef ATTND_CLIENT_ATTNCTL_ATTNCTL_H_
#define ATTND_CLIENT_ATTNCTL_ATTNCTL_H_

#include <ostream>
#include <string>
#include <vector>

namespace attnd::attnctl {

// Runs one command line, without the program's name in front. Results go to
// `out`; errors, and a progress bar if `err_is_terminal`, to `err`. Returns an
// ExitCode. Reads ATTND_SERVER from the environment.
int RunAttnctl(const std::vector<std::string>& arguments, std::ostream& out,
               std::ostream& err, bool err_is_terminal);

}  // namespace attnd::attnctl

#endif  // ATTND_CLIENT_ATTNCTL_ATTNCTL_H_
