//! The parts of DATABASE_URL and REDIS_URL, and the mistakes that a library would not name. No password is in an error.

/// A URL without its user, password and host.
#[derive(Debug)]
pub struct Parts<'a> {
    pub scheme: &'a str,
    /// Without the first slash.
    pub path: &'a str,
    /// Names and values of the query.
    pub parameters: Vec<(&'a str, &'a str)>,
    /// Whether several hosts are named, separated by commas.
    pub has_several_hosts: bool,
}

impl<'a> Parts<'a> {
    /// `form` says how the URL has to look.
    ///
    /// # Errors
    /// One sentence for the operator.
    pub fn of(setting: &str, url: &'a str, form: &str) -> Result<Self, String> {
        let (scheme, rest) =
            url.split_once("://").ok_or_else(|| format!("{setting} is no URL; {form}"))?;
        let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
        let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
        let pairs = query.split('&').filter(|pair| !pair.is_empty());
        let pairs = pairs.map(|pair| pair.split_once('=').unwrap_or((pair, "")));
        let parameters: Vec<(&str, &str)> = pairs.collect();
        // One of these in a password ends it.
        let is_cut =
            path.contains('@') || parameters.iter().any(|(name, _)| name.contains(['@', '/']));
        if is_cut || url.contains('#') {
            return Err(format!(
                "{setting} has one of / ? # where it ends the user or the password; write / as %2F, ? as %3F and # as %23 there"
            ));
        }
        let host = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
        let of_query = parameters.iter().find(|(name, _)| *name == "host");
        let has_several_hosts =
            host.contains(',') || of_query.is_some_and(|(_, host)| host.contains(','));
        Ok(Self { scheme, path, parameters, has_several_hosts })
    }

    /// The parameters that none of the names is for.
    pub fn unknown(&self, known: &[&str]) -> Option<&'a str> {
        let mut names = self.parameters.iter().map(|(name, _)| *name);
        names.find(|name| !known.contains(name) && !name.starts_with("options["))
    }
}
