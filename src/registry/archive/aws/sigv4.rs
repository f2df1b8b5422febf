//! AWS's Signature Version 4 of a request, in its headers (docs.aws.amazon.com, IAM user guide, "Create a signed AWS API
//! request"). What S3 is asked is signed in the query, by `rusty-s3`.

use reqwest::Url;
use ring::hmac;
use rusty_s3::Credentials;

use crate::registry::manifest::sha256;
use crate::types::{Digest, Timestamp};

/// A POST that is to be signed.
pub(super) struct Post<'a> {
    pub service: &'a str,
    pub region: &'a str,
    /// Without a query.
    pub url: &'a Url,
    pub content_type: &'a str,
    pub body: &'a str,
}

impl Post<'_> {
    /// The headers that go along, beside its type.
    pub fn sign(&self, credentials: &Credentials, now: Timestamp) -> Vec<(&'static str, String)> {
        let (time, day) = (now.strftime("%Y%m%dT%H%M%SZ").to_string(), now.strftime("%Y%m%d").to_string());
        let mut headers = vec![("x-amz-date", time.clone())];
        headers.extend(credentials.token().map(|token| ("x-amz-security-token", token.to_owned())));
        let host = self.host();
        // In the order of their names.
        let mut signed = vec![("content-type", self.content_type), ("host", host.as_str())];
        signed.extend(headers.iter().map(|(name, value)| (*name, value.as_str())));
        let names = signed.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(";");
        let lines: String = signed.iter().map(|(name, value)| format!("{name}:{}\n", value.trim())).collect();
        let (path, body) = (self.url.path(), sha256(self.body.as_bytes()));
        let request = sha256(format!("POST\n{path}\n\n{lines}\n{names}\n{}", body.hex()).as_bytes());
        let Self { service, region, .. } = self;
        let scope = format!("{day}/{region}/{service}/aws4_request");
        let text = format!("AWS4-HMAC-SHA256\n{time}\n{scope}\n{}", request.hex());
        let mut key = format!("AWS4{}", credentials.secret()).into_bytes();
        for part in [&day, *region, *service, "aws4_request"] {
            key = code(&key, part).to_vec();
        }
        let signature = Digest::from_sha256(&code(&key, &text));
        let value = format!(
            "AWS4-HMAC-SHA256 Credential={}/{scope}, SignedHeaders={names}, Signature={}",
            credentials.key(),
            signature.hex()
        );
        headers.push(("authorization", value));
        headers
    }

    /// As it stands in the request: a port that goes without saying is not said.
    fn host(&self) -> String {
        let host = self.url.host_str().unwrap_or_default();
        self.url.port().map_or_else(|| host.to_owned(), |port| format!("{host}:{port}"))
    }
}

fn code(key: &[u8], text: &str) -> [u8; 32] {
    let tag = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, key), text.as_bytes());
    let mut code = [0; 32];
    // As long as that, for this algorithm.
    code.iter_mut().zip(tag.as_ref()).for_each(|(to, from)| *to = *from);
    code
}

#[cfg(test)]
mod tests {
    use super::*;

    fn signed(credentials: &Credentials, url: &str) -> Vec<(&'static str, String)> {
        let url = url.parse().unwrap();
        let post = Post {
            service: "service",
            region: "us-east-1",
            url: &url,
            content_type: "application/x-www-form-urlencoded",
            body: "Param1=value1",
        };
        post.sign(credentials, "2015-08-30T12:36:00Z".parse().unwrap())
    }

    /// `post-x-www-form-urlencoded` of AWS's test suite for signatures.
    #[test]
    fn the_example_of_the_test_suite() {
        let credentials = Credentials::new("AKIDEXAMPLE", "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY");
        let headers = signed(&credentials, "https://example.amazonaws.com/");
        let value = "AWS4-HMAC-SHA256 Credential=AKIDEXAMPLE/20150830/us-east-1/service/aws4_request, \
            SignedHeaders=content-type;host;x-amz-date, \
            Signature=ff11897932ad3f4e8b18135d722051e5ac45fc38421b1da7b9d196a0fe09473a";
        let expected = [("x-amz-date", "20150830T123600Z".to_owned()), ("authorization", value.to_owned())];
        assert_eq!(headers, expected);
    }

    #[test]
    fn a_token_is_signed_too() {
        let credentials = Credentials::new_with_token("A", "B", "C");
        let headers = signed(&credentials, "http://127.0.0.1:5000/");
        assert_eq!(headers[1], ("x-amz-security-token", "C".to_owned()));
        assert!(headers[2].1.contains("SignedHeaders=content-type;host;x-amz-date;x-amz-security-token,"));
        let post = |url: &Url| Post { service: "", region: "", url, content_type: "", body: "" }.host();
        assert_eq!(post(&"http://127.0.0.1:5000/".parse().unwrap()), "127.0.0.1:5000");
        assert_eq!(
            post(&"https://sts.eu-west-1.amazonaws.com:443/".parse().unwrap()),
            "sts.eu-west-1.amazonaws.com"
        );
    }
}
